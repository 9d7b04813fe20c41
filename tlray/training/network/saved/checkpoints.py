"""Checkpoints of a training run: one object each, so that each is there whole or not at all, on any store."""

import json
import shutil
from collections.abc import Mapping

import safetensors.torch
from pydantic import BaseModel
from torch import Tensor

from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import join, to_path

_KEY = "tlray"
_HEADER_LENGTH_BYTES = 8
"""A safetensors file begins with the length of its JSON header, little-endian (the format's own page)."""


Parts = Mapping[str, Mapping[str, Tensor]]


class Epoch(BaseModel):
    """How an epoch went; `validation_loss` and `accuracy` (of task single) are of the validation rows, where there are any.

    Losses of a regression are of targets standardised by the training rows.
    """

    train_loss: float
    validation_loss: float | None
    accuracy: float | None
    seconds: float


class Progress(BaseModel):
    """Where a training run is; kept with each checkpoint.

    Attributes:
        epoch: that is under way, from 0.
        step: steps of it that are done.
        rows: that were trained on, in all epochs.
        loss: sum over the rows of the epoch so far, on this process.
        weight: their sum of weights, likewise.
        epochs: how those went that are done.
        best_epoch: the one of the least validation loss, or -1.
        is_done: whether nothing is left to train.
    """

    epoch: int = 0
    step: int = 0
    rows: int = 0
    loss: float = 0.0
    weight: float = 0.0
    epochs: list[Epoch] = []
    best_epoch: int = -1
    is_done: bool = False


class Checkpoints:
    """The checkpoints of one training, in its folder.

    Args:
        uri: the run's folder.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def save(self, step: int, parts: Parts, progress: Progress) -> None:
        """Write one, then delete older ones.

        Args:
            step: of the whole training; orders them.
            parts: tensors by part and name, on any device.
            progress: where the run is.
        """
        store, own = open_store(self._uri), self._uri_of(step)
        tensors = {
            f"{part}/{key}": tensor.detach().cpu().contiguous()
            for part, named in parts.items()
            for key, tensor in named.items()
        }
        store.write(own, safetensors.torch.save(tensors, {_KEY: progress.model_dump_json()}))
        store.delete([uri for uri in self._list() if uri.rsplit("/", 1)[-1] < own.rsplit("/", 1)[-1]])

    def last_step(self) -> int:
        """The step of the newest one; -1 where there is none."""
        uris = self._list()
        return int(uris[-1].rsplit("/", 1)[-1][len("step-") : -len(".safetensors")]) if uris else -1

    def read(self, step: int) -> tuple[dict[str, dict[str, Tensor]], Progress]:
        """The parts of one, on the CPU, and where the run was."""
        data = open_store(self._uri).read(self._uri_of(step)).data
        length = int.from_bytes(data[:_HEADER_LENGTH_BYTES], "little")
        header = json.loads(data[_HEADER_LENGTH_BYTES : _HEADER_LENGTH_BYTES + length])
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in safetensors.torch.load(data).items():
            part, _, key = name.partition("/")
            parts.setdefault(part, {})[key] = tensor
        return parts, Progress.model_validate_json(header["__metadata__"][_KEY])

    def _uri_of(self, step: int) -> str:
        return join(self._uri, f"step-{step:010d}.safetensors")

    def _list(self) -> list[str]:
        uris = [uri for page in open_store(self._uri).list(self._uri) for uri in page["uri"].to_pylist()]
        return sorted(uri for uri in uris if uri.rsplit("/", 1)[-1].startswith("step-"))


def folder_exists(uri: str) -> bool:
    """Whether anything is below a folder or, where folders are something themselves, whether it is there."""
    if uri.startswith("file://"):
        return to_path(uri).exists()
    return any(len(page) for page in open_store(uri).list(uri))


def delete_folder(uri: str) -> None:
    """Delete everything below a folder, and where folders are something themselves, it too."""
    store = open_store(uri)
    store.delete([found for page in store.list(uri) for found in page["uri"].to_pylist()])
    if uri.startswith("file://"):
        shutil.rmtree(to_path(uri), ignore_errors=True)
