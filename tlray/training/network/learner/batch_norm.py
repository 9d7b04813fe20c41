"""Batch norms of several processes that normalise by the whole batch, so that together they compute what one would.

DDP alone leaves each process the statistics of its own share. torch's SyncBatchNorm is another class of module, for GPUs only,
and knows nothing of the batch norms of other libraries (timm's have their activation inside). Here the modules stay what they
are: while a step runs, the function that all of them call takes mean and variance from all processes.

Shape legend: C channels.
"""

import inspect
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tlray.training.network.processes import World

_SIGNATURE = inspect.signature(F.batch_norm)


def shared_batch_norms(world: World, *, counts: bool) -> AbstractContextManager[object]:
    """Within it batch norms in training mode are shared; all processes run the same network in it at the same time.

    Args:
        world: of the processes; alone nothing changes.
        counts: whether this process's rows belong to the batch, or only stand in for missing ones.
    """
    return _SharedBatchNorms(world, counts) if world.size > 1 else nullcontext()


class _SharedBatchNorms(TorchFunctionMode):
    def __init__(self, world: World, counts: bool) -> None:
        super().__init__()
        self._world, self._counts = world, counts

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.batch_norm:
            given = _SIGNATURE.bind(*args, **(kwargs or {}))
            given.apply_defaults()
            if given.arguments.pop("training"):
                return self._normalised(**given.arguments)
        return func(*args, **(kwargs or {}))

    def _normalised(
        self,
        input: Tensor,  # noqa: A002 - torch's name
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        """Do what `F.batch_norm` does in training, with the mean and variance of all processes' rows."""
        with torch.no_grad():
            rows, mean_C, variance_C = self._statistics(input)
            if running_mean is not None and running_var is not None:
                running_mean.lerp_(mean_C.to(running_mean), momentum)
                running_var.lerp_((variance_C * (rows / (rows - 1).clamp(min=1))).to(running_var), momentum)
        weight = torch.ones_like(mean_C, dtype=torch.float32) if weight is None else weight
        bias = torch.zeros_like(weight) if bias is None else bias
        scale_C = (variance_C + eps).rsqrt().float()
        output: Tensor = _Normalise.apply(input, weight, bias, mean_C.float(), scale_C, rows, self._counts, self._world)
        return output

    def _statistics(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (places in maps included), mean_C and variance_C of all processes.

        In float64, in which sums of squares are exact enough to be subtracted.
        """
        variance_C, mean_C = torch.var_mean(values.float(), dim=_but_channels(values), correction=0)
        mean_C, variance_C = mean_C.double(), variance_C.double()
        rows = values.new_tensor([values.numel() // values.shape[1]], dtype=torch.float64)
        sums = torch.cat([rows, rows * mean_C, rows * (variance_C + mean_C**2)]) * self._counts
        self._world.sum(sums)
        rows, sum_C, squares_C = torch.split(sums, [1, len(mean_C), len(mean_C)])
        mean_C = sum_C / rows
        return rows, mean_C, (squares_C / rows - mean_C**2).clamp(min=0)


class _Normalise(torch.autograd.Function):
    """(input - mean) * scale * weight + bias, whose gradient knows that mean and scale come from the inputs of all processes.

    The gradient is Ioffe and Szegedy's (2015, arXiv 1502.03167, section 3), its two sums taken over all processes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        mean_C: Tensor,
        scale_C: Tensor,
        rows: Tensor,
        counts: bool,
        world: World,
    ) -> Tensor:
        ctx.save_for_backward(values, weight_C, mean_C, scale_C, rows)
        ctx.counts, ctx.world = counts, world
        slope_C = weight_C * scale_C
        output = values * _along_channels(slope_C, values) + _along_channels(bias_C - mean_C * slope_C, values)
        return output.to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weight_C, mean_C, scale_C, rows = ctx.saved_tensors
        gradient, places = gradients[0].float(), _but_channels(values)
        normal = (values.float() - _along_channels(mean_C, values)) * _along_channels(scale_C, values)
        own_2C = torch.stack([(gradient * normal).sum(dim=places), gradient.sum(dim=places)])
        weight_gradient_C, bias_gradient_C = own_2C * ctx.counts  # DDP adds those of all processes
        all_2C = ctx.world.sum(torch.stack([weight_gradient_C, bias_gradient_C])) / rows.float()
        inner = gradient - normal * _along_channels(all_2C[0], values) - _along_channels(all_2C[1], values)
        inputs = inner * _along_channels(weight_C * scale_C, values) * ctx.counts
        return inputs.to(values.dtype), weight_gradient_C, bias_gradient_C, *[None] * 5


def _but_channels(values: Tensor) -> list[int]:
    return [dim for dim in range(values.ndim) if dim != 1]


def _along_channels(values_C: Tensor, like: Tensor) -> Tensor:
    return values_C.reshape(1, -1, *[1] * (like.ndim - 2))
