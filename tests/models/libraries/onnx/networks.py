"""Small networks written as ONNX, and what others than onnxruntime make of their weights.

Shape legend: B images, H height, W width, C channels, D embedding length.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

SIDE = 32
PREPROCESSING: dict[str, Any] = {
    "resize": [40, 40],
    "fit": "cover",
    "crop": [SIDE, SIDE],
    "interpolation": "bilinear",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
SAID: dict[str, Any] = PREPROCESSING | {"channels": "rgb", "scale": [0, 1]}
"""What a user says where no file does."""


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed).standard_normal
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (16, 8, 3, 3), "b2": (16,), "w3": (5, 16), "b3": (5,)}
    return {name: (draw(shape) * (0.3 if len(shape) > 1 else 0.1)).astype(np.float32) for name, shape in shapes.items()}


def network(
    *,
    seed: int = 0,
    kind: int = TensorProto.FLOAT,
    nhwc: bool = False,
    batch: int | str = "n",
    size: tuple[int | str, int | str] = (SIDE, SIDE),
    opset: int = 17,
    last: str | None = "Softmax",
    middle: list[onnx.NodeProto] | None = None,
    after: list[onnx.NodeProto] | None = None,
    metadata: dict[str, str] | None = None,
) -> onnx.ModelProto:
    """Two convolutions, pooling and a classifier: `relu1`, `relu2`, `pooled`, `flat`, `logits`, `scores`.

    Args:
        seed: of the weights.
        kind: type of the images and the weights.
        nhwc: take images so, and transpose them first.
        batch: a number, or a name where any may come.
        size: height and width of the images, likewise.
        opset: of ONNX's own operators.
        last: the operator that makes scores of logits; None for none.
        middle: nodes from `raw` to `flat`, in place of Flatten of `pooled`.
        after: further nodes, of the domain `nobody`, say.
        metadata: of the file.
    """
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    shape = [batch, *size, 3] if nhwc else [batch, 3, *size]
    nodes = [helper.make_node("Transpose", ["images"], ["nchw"], perm=[0, 3, 1, 2])] if nhwc else []
    nodes += [
        helper.make_node("Conv", ["nchw" if nhwc else "images", "w1", "b1"], ["conv1"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv1"], ["relu1"]),
        helper.make_node("Conv", ["relu1", "w2", "b2"], ["conv2"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv2"], ["relu2"]),
        helper.make_node("GlobalAveragePool", ["relu2"], ["pooled"]),
        *(middle or [helper.make_node("Flatten", ["pooled"], ["flat"])]),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["logits"], transB=1),
        *([helper.make_node(last, ["logits"], ["scores"])] if last else []),
        *(after or []),
    ]
    output = helper.make_tensor_value_info("scores" if last else "logits", kind, [batch, 5])
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", kind, shape)],
        [output],
        [numpy_helper.from_array(value.astype(dtype), name) for name, value in weights(seed).items()],
    )
    domains = {node.domain for node in after or [] if node.domain}
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in sorted(domains))]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=3 if opset < 9 else 8)
    if opset < 9:  # where tensors are inputs too
        graph = model.graph
        graph.input.extend(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in graph.initializer
        )
    helper.set_model_props(model, metadata if metadata is not None else {"tlray.preprocessing": json.dumps(PREPROCESSING)})
    return model


def save(path: Path, **changes: Any) -> Path:
    """A network as a file."""
    onnx.save(network(**changes), path)
    return path


def by_torch(inputs_BCHW: torch.Tensor, seed: int = 0) -> dict[str, np.ndarray]:
    """What torch makes of prepared images with the same weights."""
    tensors = {name: torch.from_numpy(value) for name, value in weights(seed).items()}
    relu1 = functional.conv2d(inputs_BCHW, tensors["w1"], tensors["b1"], stride=2, padding=1).relu()
    relu2 = functional.conv2d(relu1, tensors["w2"], tensors["b2"], stride=2, padding=1).relu()
    flat = relu2.mean((2, 3))
    logits = functional.linear(flat, tensors["w3"], tensors["b3"])
    values = {"relu1": relu1.mean((2, 3)), "relu2": flat, "flat": flat, "logits": logits, "scores": logits.softmax(1)}
    return {name: value.numpy() for name, value in values.items()}
