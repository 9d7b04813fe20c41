"""What a recipe's `precision.compute` means on a device.

Shape legend: R rows of weights that are rounded together, K weights of a row.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from tlray.errors import ConfigError
from tlray.models.folding import CONVOLUTIONS
from tlray.recipe import Compute

SHORT_SUM = 64
"""Layers whose outputs are weighted sums of fewer terms than this lose most at 16 bits.

The roundings of the terms are random, so that the relative error of a sum falls with the root of their number (Higham and Mary,
A new approach to probabilistic rounding error analysis, SIAM J. Sci. Comput. 41, 2019): sums of 9 or 27 lose most, and with
them mobile networks begin. Measured in tf_efficientnet_lite0 with trained weights, one layer at a time at bf16 (largest
1 - cosine of the embedding to fp32 over 16 photos and golden images): the stem 1.2e-3, the first two depthwise convolutions
1.7e-3 and 4.7e-4, no layer of 64 terms or more over 8.1e-5.

With trained weights it is the weights' rounding that counts (rounding only what flows between the layers: 0.9999), and rounding
each kernel to its own sum helps: with all layers at bf16 tf_efficientnet_lite0 goes from 0.9960 to 0.9992 (noisy pictures) and
from 0.9983 to 0.9996 (photos), but has 0.9972 on handwritten digits, with their large even areas; with random weights
efficientnet_b0 has 0.997, mnasnet0_5 0.98, shufflenet_v2_x1_0 0.95. With the layers of short sums at fp32 these come to 0.9993
(digits), 0.9997, 0.9997 and 0.9993. The price of that, in images a second of two cores (avx512_bf16, batches of 16, two lanes):
tf_efficientnet_lite0 141 for 379, no more than fp32 has (145); networks without such layers (ResNet, ViT) pay nothing."""

_LAYERS = (*CONVOLUTIONS, nn.Linear)
"""Exact types, as there."""

_DTYPES: dict[Compute, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def lower(module: nn.Module, device: torch.device, compute: Compute, *, exact_below: int) -> None:
    """Make a module ready to compute at 16 bits under `precision`; changes `module`, not the tensors that it holds.

    Args:
        module: in eval mode, fp32.
        device: of the module.
        compute: bf16 or fp16.
        exact_below: layers whose outputs are sums of fewer terms stay at fp32: 0 or SHORT_SUM.
    """
    for layer in module.modules():
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        if layer.weight[0].numel() < exact_below:
            layer.forward = partial(_run_exact, layer.forward, device.type)  # type: ignore[method-assign]
        elif type(layer) in _LAYERS:
            layer.weight = nn.Parameter(_round_weights(layer.weight.detach(), _DTYPES[compute]), requires_grad=False)


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
