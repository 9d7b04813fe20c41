"""What a recipe's `precision.compute` means on a device."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from tlray.errors import ConfigError
from tlray.recipe import Compute

SHORT_SUM = 64
"""Layers whose outputs are weighted sums of fewer terms than this stay at fp32.

The roundings of the terms are random, so that the relative error of a sum falls with the root of their number (Higham and Mary,
A new approach to probabilistic rounding error analysis, SIAM J. Sci. Comput. 41, 2019): sums of 9 or 27 lose most, and with
them mobile networks begin. Measured in tf_efficientnet_lite0 with trained weights, one layer at a time at bf16 (largest
1 - cosine of the embedding to fp32 over 16 photos and golden images): the stem 1.2e-3, the first two depthwise convolutions
1.7e-3 and 4.7e-4, no layer of 64 terms or more over 8.1e-5.

Least cosine of bf16 to fp32 with batch norms folded, with all layers at bf16 and under this rule: tf_efficientnet_lite0 0.9953
and 0.9994; with random weights efficientnet_b0 0.9952 and 0.9993, mnasnet0_5 0.957 and 0.9990, shufflenet_v2_x1_0 0.979 and
0.998, mobilevit_xxs 0.9991 and 0.9999. Up to 128 terms would bring ShuffleNet to 0.9999, but would take in the 64-channel stage
of ResNets, which do not need it; ResNets and ViT have none of fewer than 64.

The price, in images a second of one core (avx512_bf16, batches of 16): tf_efficientnet_lite0 87 under this rule, 148 with all
folded layers at bf16, 115 under autocast alone, unfolded; ResNet-50 pays nothing."""

_DTYPES: dict[Compute, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def keep_short_sums_exact(module: nn.Module, device: torch.device) -> None:
    """Make the layers that SHORT_SUM names compute at fp32 even where the rest does not; changes `module`."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.weight[0].numel() < SHORT_SUM:
            layer.forward = partial(_run_exact, layer.forward, device.type)  # type: ignore[method-assign]


def _run_exact(forward: Callable[[Tensor], Tensor], device_type: str, x: Tensor) -> Tensor:
    with torch.autocast(device_type, enabled=False):
        return forward(x.float())


@contextlib.contextmanager
def precision(device: torch.device, compute: Compute) -> Iterator[None]:
    """The recipe's number format, whatever the process has set: fp32 means fp32, without TF32 and without autocast.

    Raises:
        ConfigError: the device lacks an operation at this precision.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    reduced = compute != "fp32"
    try:
        with (
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
            torch.autocast(device.type, dtype=_DTYPES[compute] if reduced else torch.bfloat16, enabled=reduced),
        ):
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
