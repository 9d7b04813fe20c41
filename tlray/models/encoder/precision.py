"""What a recipe's `precision.compute` means on a device.

Shape legend: R rows of weights that are rounded together, K weights of a row.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from tlray.errors import ConfigError
from tlray.models.encoder.folding import CONVOLUTIONS
from tlray.recipe import Compute

_LAYERS = (*CONVOLUTIONS, nn.Linear)
"""Exact types, as there."""

_DTYPES: dict[Compute, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def lower(module: nn.Module, device: torch.device, compute: Compute, *, exact_below: int) -> None:
    """Make a module ready to compute at 16 bits under `precision`; changes `module`, not the tensors that it holds.

    Args:
        module: in eval mode, fp32.
        device: of the module.
        compute: bf16 or fp16.
        exact_below: so many layers, the first in the module's order, stay at fp32.
    """
    for number, layer in enumerate(_layers(module)):
        if number < exact_below:
            layer.forward = partial(_run_exact, layer.forward, device.type)  # type: ignore[method-assign]
        elif type(layer) in _LAYERS:
            layer.weight = nn.Parameter(_round_weights(layer.weight.detach(), _DTYPES[compute]), requires_grad=False)


def count_layers(module: nn.Module) -> int:
    """Count the layers that can stay at fp32 (`exact_below`): convolutions and linear ones."""
    return len(list(_layers(module)))


def _layers(module: nn.Module) -> Iterator[nn.Conv2d | nn.Linear]:
    return (layer for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear)))


def _round_weights(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Round weights; each kernel of more than one position keeps its sum to the precision of its smallest weight.

    Neighbouring pixels are much alike, so an error of a kernel's sum acts on all of them alike and no pooling averages it out;
    errors that cancel within the kernel hardly show. The rounding error of each weight is carried to the next smaller one:
    error diffusion, as Floyd and Steinberg (1976) have it for pictures.
    """
    if weight.ndim != 4 or weight[0, 0].numel() == 1:
        return weight.to(dtype)
    rows_RK = weight.flatten(0, 1).flatten(1)
    order_RK = rows_RK.abs().argsort(dim=1, descending=True)
    sorted_RK = rows_RK.gather(1, order_RK).double()
    rounded_RK = torch.empty_like(rows_RK, dtype=dtype)
    carry_R = torch.zeros_like(sorted_RK[:, 0])
    for k in range(rows_RK.shape[1]):
        wanted_R = sorted_RK[:, k] + carry_R
        rounded_RK[:, k] = wanted_R.to(dtype)
        carry_R = wanted_R - rounded_RK[:, k].double()
    result = torch.empty_like(rounded_RK).scatter_(1, order_RK, rounded_RK).reshape(weight.shape)
    return result.to(memory_format=torch.channels_last)


def _run_exact(forward: Callable[[Tensor], Tensor], device_type: str, x: Tensor) -> Tensor:
    with torch.autocast(device_type, enabled=False):
        return forward(x.float())


def autocast(device: torch.device, compute: Compute) -> torch.autocast:
    """The part of `precision` that belongs to a thread."""
    reduced = compute != "fp32"
    return torch.autocast(device.type, dtype=_DTYPES[compute] if reduced else torch.bfloat16, enabled=reduced)


@contextlib.contextmanager
def precision(device: torch.device, compute: Compute) -> Iterator[None]:
    """The recipe's number format, whatever the process has set: fp32 means fp32, without TF32 and without autocast.

    Raises:
        ConfigError: the device lacks an operation at this precision.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), autocast(device, compute):
            yield
    except NotImplementedError as error:
        raise _unsupported(device, compute, error) from error
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "not implemented for" not in str(error):
            raise
        raise _unsupported(device, compute, error) from error
    finally:
        torch.set_float32_matmul_precision(before)


def _unsupported(device: torch.device, compute: Compute, error: Exception) -> ConfigError:
    return ConfigError(
        f"{device} cannot compute this backbone at {compute}: {error}; use recipe.precision.compute fp32 or bf16"
    )
