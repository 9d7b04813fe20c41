"""How a model takes images: the layout, type, size and batch of its only input."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from tlray.errors import BackboneError, ConfigError

_RANK = 4
_CHANNELS = 3

_TYPES: dict[int, np.dtype] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.DOUBLE: np.dtype(np.float64),
    TensorProto.UINT8: np.dtype(np.uint8),
    TensorProto.INT8: np.dtype(np.int8),
}


@dataclass(frozen=True)
class ImageInput:
    """The input of a model that takes images.

    Attributes:
        name: of the input.
        dtype: of its values.
        is_nhwc: whether channels come last.
        batch: the only number of images that it takes; None for any.
        size: (height, width) in pixels.
    """

    name: str
    dtype: np.dtype
    is_nhwc: bool
    batch: int | None
    size: tuple[int, int]

    @property
    def takes_levels(self) -> bool:
        """Whether values are whole numbers, so that normalisation is the model's own."""
        return self.dtype.kind in "iu"

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of the input, None for any number of images."""
        return (self.batch, *self.size, _CHANNELS) if self.is_nhwc else (self.batch, _CHANNELS, *self.size)


def image_input(graph: onnx.GraphProto, crop: tuple[int, int] | None, where: str) -> ImageInput:
    """Find out how a model takes images.

    Args:
        graph: of the model.
        crop: (height, width) of the images, where it is said.
        where: names the model in messages.

    Raises:
        BackboneError: it has several inputs, or one that takes no RGB images.
        ConfigError: it takes images of any size and none is said, or of another size than is said.
    """
    weights = {tensor.name for tensor in graph.initializer} | {tensor.values.name for tensor in graph.sparse_initializer}
    inputs = [each for each in graph.input if each.name not in weights]
    if len(inputs) != 1:
        raise BackboneError(
            f"{where} has {len(inputs)} inputs ({', '.join(described(each) for each in inputs) or 'none'}), expected one, of "
            "images; export it so that the others are constants"
        )
    (given,) = inputs
    kind = given.type.tensor_type
    if not given.type.HasField("tensor_type") or kind.elem_type not in _TYPES:
        raise BackboneError(f"{where} takes {described(given)}, expected images as {', '.join(map(str, _TYPES.values()))}")
    sizes = _sizes(kind) if kind.HasField("shape") else []
    if len(sizes) != _RANK:
        raise BackboneError(f"{where} takes {described(given)}, expected images of 4 dimensions (NCHW or NHWC)")
    is_nhwc = _is_nhwc(graph, given, sizes, where)
    free = sizes[1:3] if is_nhwc else sizes[2:]
    size = _size(free, crop, f"{where} takes {described(given)}")
    return ImageInput(given.name, _TYPES[kind.elem_type], is_nhwc, sizes[0], size)


def described(value: onnx.ValueInfoProto) -> str:
    """The name, type and shape of an input, for messages."""
    kind = value.type.tensor_type
    words = TensorProto.DataType.Name(kind.elem_type).lower() if kind.elem_type else "no tensor"
    sizes = ", ".join(str(size or "?") for size in _sizes(kind)) if kind.HasField("shape") else "..."
    return f"{value.name} {words} ({sizes})"


def _sizes(kind: onnx.TypeProto.Tensor) -> list[int | None]:
    """Sizes of a tensor; what is free has a name, or a number under 1 from old exporters."""
    return [size.dim_value if size.dim_value > 0 else None for size in kind.shape.dim]


def _is_nhwc(graph: onnx.GraphProto, given: onnx.ValueInfoProto, sizes: Sequence[int | None], where: str) -> bool:
    """Where channels are: the dimension of 3, else what the first layer makes of the images."""
    fitting = [place for place in (1, 3) if sizes[place] == _CHANNELS]
    if len(fitting) == 1 and None not in (sizes[1], sizes[3]):
        return fitting == [3]
    possible = [place for place in (1, 3) if sizes[place] in (_CHANNELS, None)]
    by_layer = _first_layer(graph, given.name)
    if by_layer in possible:
        return by_layer == 3
    if len(fitting) == 1:
        return fitting == [3]
    raise BackboneError(
        f"{where} takes {described(given)}, expected images of 3 channels, in the second or the last dimension; where that is "
        "free, fix it (python -m onnxruntime.tools.make_dynamic_shape_fixed)"
    )


def _first_layer(graph: onnx.GraphProto, name: str) -> int | None:
    """The dimension of channels by the first layer: a convolution takes them second, a transposition brings them there."""
    for node in graph.node:
        if name not in node.input:
            continue
        if node.op_type in ("Conv", "QLinearConv", "ConvInteger"):
            return 1
        if node.op_type == "Transpose":
            order = next((list(each.ints) for each in node.attribute if each.name == "perm"), [])
            return 3 if order == [0, 3, 1, 2] else 1 if order == [0, 2, 3, 1] else None
    return None


def _size(free: Sequence[int | None], crop: tuple[int, int] | None, takes: str) -> tuple[int, int]:
    if crop is None:
        height, width = free
        if height is None or width is None:
            raise ConfigError(f"{takes}, images of any size: say theirs, as --recipe.preprocessing.crop 224")
        return height, width
    if any(fixed not in (None, wished) for fixed, wished in zip(free, crop, strict=True)):
        fixed = "x".join(str(size or "?") for size in free)
        raise ConfigError(f"{takes}, images of {fixed}, but recipe.preprocessing.crop is {crop[0]}x{crop[1]}: leave it out")
    return crop
