"""Which of torch's layers computes what a layer of Keras does; where none does, Keras' own computes it (`operation`)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers.drop import DropPath
from torch import nn

from tlray.models.libraries.keras.translation.layers import modules, weighted
from tlray.models.libraries.keras.translation.layers.activations import activation

Layer = Any
"""An operation of Keras as it stands in the graph of a model: a layer, or an operator between values."""

EPSILON = 1e-7
"""`keras.config.epsilon()`, unless a process sets another."""

_FIRST = {0: 0, 1: 2, 2: 3, 3: 1}
"""Torch's number of a map's dimension, by Keras'."""


def make(layer: Layer, ranks: Sequence[int], arguments: Sequence[object], *, is_operator: bool) -> nn.Module | None:
    """The torch layer that computes what one of Keras does; None where there is none.

    Args:
        layer: of Keras itself, built, with channels last.
        ranks: dimensions of the values that go in, the batch's included.
        arguments: of its call: the values as None, and all else as it is.
        is_operator: whether it is an operator between values (`+`) and no layer.
    """
    kind = type(layer).__name__
    if is_operator:
        return _arithmetic(_OPERATORS[kind], ranks, arguments) if kind in _OPERATORS else None
    maker = _LAYERS.get(kind)
    return None if maker is None else maker(layer, ranks)


def _relu(layer: Layer, _ranks: Sequence[int]) -> nn.Module | None:
    if layer.negative_slope or layer.threshold or layer.max_value not in (None, 6):
        return None
    return nn.ReLU() if layer.max_value is None else nn.ReLU6()


def _max_pool(layer: Layer, _ranks: Sequence[int]) -> nn.Module:
    window, strides = tuple(layer.pool_size), tuple(layer.strides)
    padding = _even_padding(layer)
    return modules.SameMaxPool(window, strides) if padding is None else nn.MaxPool2d(window, strides, padding)


def _average_pool(layer: Layer, _ranks: Sequence[int]) -> nn.Module | None:
    """Where padding is uneven, versions of Keras differ (3.15 counts edges twice), and Keras computes it itself."""
    padding = _even_padding(layer)
    if padding is None:
        return None
    return nn.AvgPool2d(tuple(layer.pool_size), tuple(layer.strides), padding, count_include_pad=False)


def _even_padding(layer: Layer) -> tuple[int, int] | None:
    """What is padded on each side; None where that is not the same on both, or depends on the size of the map."""
    if layer.padding != "same":
        return 0, 0
    if any(size % 2 == 0 or stride > 1 for size, stride in zip(layer.pool_size, layer.strides, strict=True)):
        return None
    rows, columns = layer.pool_size
    return rows // 2, columns // 2


def _normalization(layer: Layer, ranks: Sequence[int]) -> nn.Module | None:
    mean, variance = torch.as_tensor(layer.mean).detach(), torch.as_tensor(layer.variance).detach()
    is_by_channel = {axis % ranks[0] for axis in layer.axis} <= {ranks[0] - 1}
    if layer.invert or not is_by_channel:
        return None
    divisor = variance.sqrt().clamp(min=EPSILON)
    return modules.Affine((mean, divisor, torch.ones(1), torch.zeros(1)), ranks[0])


def _rescaling(layer: Layer, ranks: Sequence[int]) -> nn.Module:
    scale, offset = (torch.as_tensor(value, dtype=torch.float32) for value in (layer.scale, layer.offset))
    return modules.Affine((torch.zeros(1), torch.ones(1), scale, offset), ranks[0])


def _zero_padding(layer: Layer, _ranks: Sequence[int]) -> nn.Module:
    (top, bottom), (left, right) = layer.padding
    return nn.ZeroPad2d((left, right, top, bottom))


def _concatenate(layer: Layer, ranks: Sequence[int]) -> nn.Module:
    axis = layer.axis % ranks[0]
    return modules.Concatenate(_FIRST[axis] if ranks[0] == 4 else axis)


def _merge(kind: str) -> Callable[[Layer, Sequence[int]], nn.Module | None]:
    return lambda _layer, ranks: modules.Merge(kind) if len(set(ranks)) == 1 else None


def _arithmetic(kind: str, ranks: Sequence[int], arguments: Sequence[object]) -> nn.Module | None:
    """Between values of one rank, or with a plain number; constants of other shapes are for Keras."""
    if len(arguments) != 2 or len(set(ranks)) != 1 or not all(one is None or type(one) in (int, float) for one in arguments):
        return None
    left, right = (None if one is None else float(one) for one in arguments)  # type: ignore[arg-type]
    return modules.Arithmetic(kind, left, right)


def _dropout(layer: Layer, ranks: Sequence[int]) -> nn.Module | None:
    """Translate a dropout of single values; or of whole images, which is a branch that is left out."""
    shape = getattr(layer, "noise_shape", None)
    if shape is None:
        return nn.Dropout(float(layer.rate))
    return DropPath(float(layer.rate)) if tuple(shape) == (None, *[1] * (ranks[0] - 1)) else None


def _nothing(_layer: Layer, _ranks: Sequence[int]) -> nn.Module:
    """Augmentation and the like, which do nothing to an image that is embedded; tlray augments by itself in training."""
    return nn.Identity()


_OPERATORS = {"Add": "add", "Subtract": "subtract", "Multiply": "multiply", "TrueDivide": "divide", "Divide": "divide"}

_LAYERS: dict[str, Callable[[Layer, Sequence[int]], nn.Module | None]] = {
    "Conv2D": weighted.convolution,
    "DepthwiseConv2D": weighted.depthwise,
    "SeparableConv2D": weighted.separable,
    "Dense": weighted.dense,
    "BatchNormalization": weighted.batch_norm,
    "LayerNormalization": weighted.layer_norm,
    "Activation": lambda layer, ranks: activation(layer, ranks[0]),
    "ReLU": _relu,
    "LeakyReLU": lambda layer, _: nn.LeakyReLU(float(layer.negative_slope)),
    "MaxPooling2D": _max_pool,
    "AveragePooling2D": _average_pool,
    "GlobalAveragePooling2D": lambda layer, _: modules.GlobalPool(False, bool(layer.keepdims)),
    "GlobalMaxPooling2D": lambda layer, _: modules.GlobalPool(True, bool(layer.keepdims)),
    "ZeroPadding2D": _zero_padding,
    "Cropping2D": lambda layer, _: modules.Crop(*layer.cropping),
    "Flatten": lambda _layer, _: modules.Reshape((-1,)),
    "Reshape": lambda layer, _: modules.Reshape(layer.target_shape),
    "Concatenate": _concatenate,
    "Rescaling": _rescaling,
    "Normalization": _normalization,
    "LayerScale": weighted.layer_scale,
    "CustomScaleLayer": lambda layer, _: modules.ScaledSum(float(layer.scale)),
    "Add": _merge("add"),
    "Subtract": _merge("subtract"),
    "Multiply": _merge("multiply"),
    "Average": _merge("average"),
    "Maximum": _merge("maximum"),
    "Minimum": _merge("minimum"),
    "Dropout": _dropout,
    "SpatialDropout2D": lambda layer, _: nn.Dropout2d(float(layer.rate)),
    "StochasticDepth": lambda layer, _: DropPath(float(layer.drop_path_rate)),
    "Identity": _nothing,
    "ActivityRegularization": _nothing,
    "RandomFlip": _nothing,
    "RandomRotation": _nothing,
    "RandomTranslation": _nothing,
    "RandomZoom": _nothing,
    "RandomContrast": _nothing,
    "RandomBrightness": _nothing,
}
"""What translates each kind of layer, by the name of its class."""
