"""Networks at 16 bits: which layers stay at fp32, and how weights are rounded.

Shape legend: R rows of weights that are rounded together, K weights of a row.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from tlray.models.encoder.network.folding import CONVOLUTIONS
from tlray.models.process.device import DTYPES
from tlray.recipe import Compute

_LAYERS = (*CONVOLUTIONS, nn.Linear)
"""The layers that compute at 16 bits, by their exact types."""


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
            layer.weight = nn.Parameter(_round_weights(layer.weight.detach(), DTYPES[compute]), requires_grad=False)


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
