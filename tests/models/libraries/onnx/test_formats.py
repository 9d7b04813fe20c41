"""ONNX files of every form: layouts, batches, types, opsets, quantised ones; against torch, or bare onnxruntime."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

from tests.models.libraries.onnx.networks import SIDE, by_torch, network, save
from tlray.config import RecipeConfig
from tlray.models.backbones.classifier import own_classifier
from tlray.models.backbones.images import Backbone, resolve_backbone
from tlray.models.backbones.network_input import to_network_input
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.golden import make_recipe_file
from tlray.recipe import golden_images

FP32 = {"compute": "fp32", "storage": "full"}


def resolve(path: Path | str, **wishes: Any) -> Backbone:
    return resolve_backbone(RecipeConfig.model_validate({"backbone": f"onnx:{path}", "precision": FP32} | wishes), Path)


def images(count: int = 5) -> np.ndarray:
    golden_BHWC = golden_images(SIDE, SIDE)
    return np.concatenate([golden_BHWC, golden_BHWC[:, ::-1]])[:count]


def inputs(backbone: Backbone, images_BHWC: np.ndarray) -> torch.Tensor:
    return to_network_input(torch.from_numpy(images_BHWC), backbone.recipe.preprocessing).contiguous()


def encode(backbone: Backbone, images_BHWC: np.ndarray, **settings: Any) -> dict[str, np.ndarray]:
    return Encoder(backbone, device="cpu", **({"batch_size": 4} | settings)).encode(images_BHWC)


def bare(path: Path, value: str, inputs_BCHW: np.ndarray) -> np.ndarray:
    """What onnxruntime gives of a value when the whole model runs as it is, one image after the other."""
    model = onnx.load(path)
    if value not in [output.name for output in model.graph.output]:
        model.graph.output.append(onnx.ValueInfoProto(name=value))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run([value], {name: image_CHW[None]})[0] for image_CHW in inputs_BCHW])


def near(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=10 * tolerance, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"nhwc": True},
        {"batch": 1},
        {"batch": 3},
        {"nhwc": True, "batch": 1},
        {"size": ("height", "width")},
        {"size": (0, -1)},
        {"nhwc": True, "size": ("height", "width"), "batch": "n"},
        {"opset": 7},
        {"opset": 11},
        {"opset": 21},
    ],
)
@pytest.mark.parametrize("lanes", [None, 2])
def test_every_form_gives_torchs_numbers(changes: dict, lanes: int | None, tmp_path: Path) -> None:
    backbone = resolve(save(tmp_path / "x.onnx", **changes), taps=("flat", "relu1"))
    images_BHWC = images()
    expected = by_torch(inputs(backbone, images_BHWC))
    found = encode(backbone, images_BHWC, lanes=lanes)
    near(found["embedding_flat"], expected["flat"])
    near(found["embedding_relu1"], expected["relu1"])


def test_sixteen_bits_are_those_of_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "x.onnx", kind=TensorProto.FLOAT16)
    backbone = resolve(path)
    found = encode(backbone, images())["embedding"]
    near(found, bare(path, "flat", inputs(backbone, images()).half().numpy()).astype(np.float32))
    near(found, by_torch(inputs(backbone, images()))["flat"], 1e-2)


def test_the_number_format_is_the_files_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / "x.onnx")
    with caplog.at_level(logging.WARNING):
        backbone = resolve_backbone(RecipeConfig(backbone=f"onnx:{path}"), Path)
    assert backbone.recipe.precision.compute == "fp32" and len(backbone.notes) == 1
    assert "precision.compute is fp32 in the recipe, not bf16" in caplog.text
    assert backbone.recipe == resolve(path, precision={"compute": "fp32"}).recipe and not resolve(path).notes
    file = make_recipe_file(backbone)
    assert file.exact_below == 0 and file.made_with["onnxruntime"] == onnxruntime.__version__


def test_the_penultimate_by_name_beside_another(tmp_path: Path) -> None:
    backbone = resolve(save(tmp_path / "x.onnx"), taps=("relu1", "penultimate"))
    assert backbone.recipe.taps == ("relu1", "flat")


@pytest.mark.parametrize("pool", ["avg", "max", "none", "flatten"])
def test_poolings(pool: str, tmp_path: Path) -> None:
    path = save(tmp_path / "x.onnx")
    backbone = resolve(path, taps=("relu2",), pool=pool)
    map_BCHW = bare(path, "relu2", inputs(backbone, images()).numpy())
    expected = {"avg": map_BCHW.mean((2, 3)), "max": map_BCHW.max((2, 3))}.get(pool, map_BCHW.reshape(5, -1))
    near(encode(backbone, images())["embedding"], expected)


def dynamic(path: Path, folder: Path) -> Path:
    quantize_dynamic(path, folder / "q.onnx", op_types_to_quantize=["Conv", "Gemm", "MatMul"])
    return folder / "q.onnx"


class Calibration(CalibrationDataReader):
    def __init__(self, inputs_BCHW: np.ndarray | None = None) -> None:
        if inputs_BCHW is None:
            inputs_BCHW = np.random.default_rng(0).standard_normal((4, 3, SIDE, SIDE), np.float32)
        self.left = [{"images": image_CHW[None]} for image_CHW in inputs_BCHW]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_int8_files(form: QuantFormat, tmp_path: Path) -> None:
    plain = save(tmp_path / "x.onnx")
    calibration = Calibration(inputs(resolve(plain), images()).numpy())
    # With a bit less, as sums of products saturate on processors without VNNI: so onnxruntime's documentation has it.
    quantize_static(plain, tmp_path / "q.onnx", calibration, quant_format=form, reduce_range=True)
    backbone = resolve(tmp_path / "q.onnx")
    found = encode(backbone, images())["embedding"]
    expected = by_torch(inputs(backbone, images()))["flat"]
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert found.shape == expected.shape and cosines.min() > 0.999
    scores = own_classifier(backbone, keep_embeddings=False)
    whole = bare(tmp_path / "q.onnx", "scores", inputs(backbone, images()).numpy())
    found_scores = torch.from_numpy(encode(scores.backbone, images())[scores.column]).softmax(1).numpy()
    assert np.abs(found_scores - whole).max() <= 1 / 255  # the file rounds its probabilities to levels


def test_an_int8_tap_is_the_level_times_its_scale(tmp_path: Path) -> None:
    quantize_static(save(tmp_path / "x.onnx"), tmp_path / "q.onnx", Calibration(), quant_format=QuantFormat.QOperator)
    graph = onnx.load(tmp_path / "q.onnx").graph
    node = next(node for node in graph.node if node.op_type == "QLinearConv")
    scale, zero = (numpy_helper.to_array(next(t for t in graph.initializer if t.name == name)) for name in node.input[6:8])
    backbone = resolve(tmp_path / "q.onnx", taps=(node.output[0],), pool="none")
    levels = bare(tmp_path / "q.onnx", node.output[0], inputs(backbone, images(3)).numpy())
    assert levels.dtype in (np.uint8, np.int8)
    near(encode(backbone, images(3))["embedding"], (levels.astype(np.float32) - zero).reshape(3, -1) * scale)


def test_scales_chosen_by_the_batch_do_not_mix_images(tmp_path: Path) -> None:
    path = dynamic(save(tmp_path / "x.onnx"), tmp_path)
    assert "DynamicQuantizeLinear" in {node.op_type for node in onnx.load(path).graph.node}
    backbone = resolve(path)
    assert any("one by one" in note for note in backbone.notes)
    dark_BHWC = np.concatenate([images(3), images(1) // 40])  # would change the scale of the others
    found = encode(backbone, dark_BHWC)["embedding"]
    near(found, bare(path, backbone.recipe.taps[0], inputs(backbone, dark_BHWC).numpy()).reshape(4, -1))


@pytest.mark.parametrize("is_quantised", [True, False])
def test_images_of_a_fixed_batch_do_not_mix(is_quantised: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A model for three images whose numbers are mixed gets each by itself, thrice."""
    path = save(tmp_path / "x.onnx", batch=3, middle=None if is_quantised else MEAN_OF_BATCH)
    path = dynamic(path, tmp_path) if is_quantised else path
    with caplog.at_level(logging.WARNING):
        backbone = resolve(path, taps=("flat",))
    assert "one by one" in " ".join([*backbone.notes, caplog.text])
    dark_BHWC = np.concatenate([images(3), images(1) // 40])
    thrice = np.repeat(inputs(backbone, dark_BHWC).numpy(), 3, axis=0)
    session = onnxruntime.InferenceSession(_with_output(path, "flat"), providers=["CPUExecutionProvider"])
    expected = [session.run(["flat"], {"images": thrice[start : start + 3]})[0][0] for start in range(0, 12, 3)]
    near(encode(backbone, dark_BHWC)["embedding"], np.stack(expected))


def _with_output(path: Path, value: str) -> bytes:
    model = onnx.load(path)
    model.graph.output.append(onnx.ValueInfoProto(name=value))
    return model.SerializeToString()


MEAN_OF_BATCH = [
    helper.make_node("ReduceMean", ["pooled"], ["mean"], axes=[0]),
    helper.make_node("Sub", ["pooled", "mean"], ["less"]),
    helper.make_node("Add", ["less", "pooled"], ["more"]),
    helper.make_node("Flatten", ["more"], ["flat"]),
]


@pytest.mark.parametrize(
    "middle",
    [
        [helper.make_node("Reshape", ["pooled", "shape"], ["flat"])],
        MEAN_OF_BATCH,
    ],
    ids=("a batch written into the file", "a mean over the batch"),
)
def test_a_batch_that_is_no_batch(middle: list, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = network(middle=middle)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 16]), "shape"))
    onnx.save(model, tmp_path / "x.onnx")
    with caplog.at_level(logging.WARNING):
        backbone = resolve(tmp_path / "x.onnx")
    assert "one by one" in caplog.text
    near(encode(backbone, images())["embedding"], bare(tmp_path / "x.onnx", "flat", inputs(backbone, images()).numpy()))


def headless(nodes: list, output: str) -> Any:
    """The two convolutions, and other nodes after `relu2`."""
    model = network(middle=[helper.make_node("Flatten", ["pooled"], ["flat"]), *nodes])
    kept = [node for node in model.graph.node if node.output[0] not in ("logits", "scores")]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.output[0].CopyFrom(onnx.ValueInfoProto(name=output))
    return model


@pytest.mark.parametrize(
    ("nodes", "output", "default"),
    [
        ([], "flat", "flat"),  # a convolution whose map is pooled: no classifier
        ([helper.make_node("Softmax", ["flat"], ["out"])], "out", "relu1"),  # but where a softmax follows, as in SqueezeNet
        (  # a dense layer that a shortcut passes by
            [helper.make_node("MatMul", ["flat", "square"], ["dense"]), helper.make_node("Add", ["dense", "flat"], ["out"])],
            "out",
            "out",
        ),
        (  # one that all that follows rests on
            [
                helper.make_node("MatMul", ["flat", "square"], ["dense"]),
                helper.make_node("Sigmoid", ["dense"], ["gate"]),
                helper.make_node("Mul", ["dense", "gate"], ["out"]),
            ],
            "out",
            "flat",
        ),
    ],
)
def test_which_value_is_the_penultimate(nodes: list, output: str, default: str, tmp_path: Path) -> None:
    model = headless(nodes, output)
    model.graph.initializer.append(numpy_helper.from_array(np.eye(16, dtype=np.float32), "square"))
    onnx.save(model, tmp_path / "x.onnx")
    assert resolve(tmp_path / "x.onnx").recipe.taps == (default,)


def test_a_branch_that_an_inner_graph_takes_values_from(tmp_path: Path) -> None:
    """What a graph within a node takes from outside is kept when the model is cut."""
    branches = {
        name: helper.make_graph(
            [helper.make_node(kind, ["pooled"], [f"{name}_out"])], name, [], [onnx.ValueInfoProto(name=f"{name}_out")]
        )
        for name, kind in (("then_branch", "Identity"), ("else_branch", "Neg"))
    }
    middle = [helper.make_node("If", ["is_right"], ["chosen"], **branches), helper.make_node("Flatten", ["chosen"], ["flat"])]
    model = network(middle=middle)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "is_right"))
    onnx.save(model, tmp_path / "x.onnx")
    backbone = resolve(tmp_path / "x.onnx")
    near(encode(backbone, images())["embedding"], by_torch(inputs(backbone, images()))["flat"])
