"""Types and shapes of a model's inner values, inferred without its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import onnx
from onnx import TensorProto, helper, shape_inference

from tlray.models.libraries.onnx.images import ImageInput

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE})
"""Types of tensors that may hold features."""

_LARGE = 1024
"""Values of a tensor that is left out for the inference: shapes that a model computes with are of fewer."""


@dataclass(frozen=True)
class Value:
    """What is known of an inner value.

    Attributes:
        kind: number of its type in `onnx.TensorProto`; 0 where it is not known.
        shape: with None for sizes that are free; None where nothing is known.
    """

    kind: int = 0
    shape: tuple[int | None, ...] | None = None

    @property
    def of_one_image(self) -> str:
        """The shape without the batch, for people."""
        if self.shape is None:
            return "?"
        return "x".join(str(size or "?") for size in self.shape[1:]) or "no dimension"


UNKNOWN = Value()


def image_value_info(image: ImageInput) -> onnx.ValueInfoProto:
    """The input with the images' size, which the model may leave free."""
    kind = helper.np_dtype_to_tensor_dtype(image.dtype)
    return helper.make_tensor_value_info(image.name, kind, ["images" if size is None else size for size in image.shape])


def infer_values(model: onnx.ModelProto, image: ImageInput) -> Mapping[str, Value]:
    """Infer the types and shapes of all values that a model computes, as far as ONNX's own inference knows the operators.

    Args:
        model: stays as it is.
        image: its input.

    Returns:
        By name; those of which nothing is known are missing.
    """
    light = onnx.ModelProto(ir_version=max(4, model.ir_version), opset_import=model.opset_import, functions=model.functions)
    graph = light.graph
    graph.name = model.graph.name or "graph"
    graph.node.extend(model.graph.node)
    graph.input.append(image_value_info(image))
    for tensor in model.graph.initializer:
        if prod(tensor.dims) <= _LARGE and tensor.data_location != TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
        else:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    graph.output.extend(onnx.ValueInfoProto(name=output.name) for output in model.graph.output)
    try:
        inferred = shape_inference.infer_shapes(light, data_prop=True).graph
    except (shape_inference.InferenceError, RuntimeError, ValueError):
        inferred = model.graph  # what its exporter wrote into it
    return {each.name: _value(each) for each in (*inferred.value_info, *inferred.output)}


def _value(info: onnx.ValueInfoProto) -> Value:
    kind = info.type.tensor_type
    if not info.type.HasField("tensor_type"):
        return UNKNOWN
    shape = tuple(size.dim_value or None for size in kind.shape.dim) if kind.HasField("shape") else None
    return Value(kind.elem_type, shape)
