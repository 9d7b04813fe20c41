"""Layers that Keras has and torch has not, or has otherwise; each computes what Keras' layer of the same name does.

Shape legend: B images, C channels, H height, W width, N values of a row.
"""

import operator
from collections.abc import Callable, Sequence

import torch
from timm.layers.padding import get_same_padding
from torch import Tensor, nn
from torch.nn import functional

from tlray.models.libraries.keras.translation.network import from_keras, to_keras


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each position of a map."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Normalise a map, BCHW to BCHW."""
        return from_keras(super().forward(to_keras(input)))


class Affine(nn.Module):
    """(x - shift) / divisor * scale + offset, by channel or for all alike.

    Args:
        values: shift, divisor, scale and offset, each of one number or of one a channel.
        rank: dimensions of what goes in.
    """

    shift: Tensor
    divisor: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self, values: Sequence[Tensor], rank: int) -> None:
        super().__init__()
        shape = (1, -1, 1, 1) if rank == 4 else (1,) * (rank - 1) + (-1,)
        for name, value in zip(("shift", "divisor", "scale", "offset"), values, strict=True):
            self.register_buffer(name, value.detach().float().reshape(-1).view(shape).clone())

    def forward(self, x: Tensor) -> Tensor:
        """Compute in float32, in the shape of `x`."""
        return (x - self.shift) / self.divisor * self.scale + self.offset


class Scale(nn.Module):
    """Multiplies each channel by a weight.

    Args:
        weight_C: one of each channel.
        rank: dimensions of what goes in.
    """

    def __init__(self, weight_C: Tensor, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_C.clone())
        self._shape = (-1, 1, 1) if rank == 4 else (-1,)

    def forward(self, x: Tensor) -> Tensor:
        """Scale `x`, whose shape stays."""
        return x * self.weight.view(self._shape)


class SameMaxPool(nn.Module):
    """Maximum over windows, with as much padding as makes ceil(size / stride) of them; what is padded never counts."""

    def __init__(self, window: tuple[int, int], stride: tuple[int, int]) -> None:
        super().__init__()
        self._window, self._stride = window, stride

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Pool a map, BCHW to BCHW."""
        sizes = zip(x_BCHW.shape[2:], self._window, self._stride, strict=True)
        rows, columns = (get_same_padding(size, window, stride, 1) for size, window, stride in sizes)
        padding = [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2]
        return functional.max_pool2d(functional.pad(x_BCHW, padding, value=-torch.inf), self._window, self._stride)


class GlobalPool(nn.Module):
    """The average or the maximum of each channel of a map."""

    def __init__(self, is_max: bool, keeps_dims: bool) -> None:
        super().__init__()
        self._is_max, self._keeps_dims = is_max, keeps_dims

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """BCHW to BC, or to BC11."""
        if self._is_max:
            return x_BCHW.amax((2, 3), keepdim=self._keeps_dims)
        return x_BCHW.mean((2, 3), keepdim=self._keeps_dims)


class Crop(nn.Module):
    """A map without its outermost rows and columns.

    Args:
        rows: left out at the top and at the bottom.
        columns: likewise left and right.
    """

    def __init__(self, rows: tuple[int, int], columns: tuple[int, int]) -> None:
        super().__init__()
        self._rows, self._columns = rows, columns

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Crop a map, BCHW to BCHW."""
        height, width = x_BCHW.shape[2:]
        return x_BCHW[:, :, self._rows[0] : height - self._rows[1], self._columns[0] : width - self._columns[1]]


class Reshape(nn.Module):
    """The same values in another shape, in the order that they have in Keras.

    Args:
        shape: of one image's values, as Keras says it.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self._shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Reshape each of B rows."""
        return from_keras(to_keras(x).reshape(x.shape[0], *self._shape))


class Concatenate(nn.Module):
    """Joins values along a dimension, torch's number of it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self._dim = dim

    def forward(self, *values: Tensor) -> Tensor:
        """All of one shape but in that dimension."""
        return torch.cat(values, self._dim)


class Merge(nn.Module):
    """Joins values element by element, from left to right, as Keras does it.

    Args:
        kind: `add`, `subtract`, `multiply`, `maximum`, `minimum` or `average`.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind

    def forward(self, *values: Tensor) -> Tensor:
        """Values that can be joined to each other."""
        result = values[0]
        for value in values[1:]:
            result = MERGES[self._kind](result, value)
        return result / len(values) if self._kind == "average" else result


MERGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "average": operator.add,
}


class Arithmetic(nn.Module):
    """`x + 3`, `x * y` and the like, between values or with a number.

    Args:
        kind: `add`, `subtract`, `multiply` or `divide`.
        left: the number on the left; None for a value.
        right: likewise.
    """

    def __init__(self, kind: str, left: float | None, right: float | None) -> None:
        super().__init__()
        self._kind, self._left, self._right = kind, left, right

    def forward(self, *values: Tensor) -> Tensor:
        """One value beside a number, else two."""
        left = values[0] if self._left is None else self._left
        right = values[-1] if self._right is None else self._right
        result: Tensor = ARITHMETIC[self._kind](left, right)
        return result


ARITHMETIC: dict[str, Callable[..., Tensor]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
}


class ScaledSum(nn.Module):
    """x + y * scale: how Inception-ResNet adds its branches (`CustomScaleLayer`)."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self._scale = scale

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add `y` to `x`, both of one shape."""
        return x + y * self._scale


class LogProbabilities(nn.Module):
    """Scores whose softmax gives the probabilities that the network ends with, as those of other libraries' networks do.

    Args:
        is_single: whether the network gives the probability of one thing alone; its opposite gets a score then, as the first.
    """

    def __init__(self, is_single: bool) -> None:
        super().__init__()
        self._is_single = is_single

    def forward(self, probabilities_BK: Tensor) -> Tensor:
        """BK to BK; to B2 where there is one."""
        p_BK = probabilities_BK.float()
        if self._is_single:
            p_BK = torch.cat([1 - p_BK, p_BK], 1)
        return p_BK.clamp(min=torch.finfo(torch.float32).tiny).log()
