"""The hash of weights: of tensors, whatever file they came from."""

import hashlib
from collections.abc import Iterable, Mapping

import torch

State = Mapping[str, torch.Tensor]
"""Tensors by their names in a network."""


def hash_weights(module: torch.nn.Module) -> str:
    """Sha256 of all tensors of a module; see `hash_tensors`."""
    return hash_tensors(module.state_dict().items())


def hash_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Sha256, in hex, over name, type, shape and bytes of every tensor, in the order given.

    The bytes are hashed where they lie (a tensor that is not contiguous is copied), so the cost is the hash's own.
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
