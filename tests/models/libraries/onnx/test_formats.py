"""ONNX files of every form: layouts, batches, types, opsets, quantised ones; against torch, or bare onnxruntime."""

import hashlib
import json
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

from tests.models.libraries.onnx.networks import PREPROCESSING, SIDE, by_torch, network, save
from tlray.config import RecipeConfig
from tlray.models.backbones import Backbone, load_backbone, resolve_backbone, to_network_input
from tlray.models.classifier import own_classifier
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


def test_the_hash_is_the_files_whatever_it_is_called(tmp_path: Path) -> None:
    path = save(tmp_path / "x.onnx")
    recipe = resolve(path).recipe
    assert recipe.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    moved = path.rename(tmp_path / "y.onnx")
    again = resolve(moved).recipe
    assert again.recipe_id == recipe.recipe_id and again.weights == str(moved)
    assert load_backbone(recipe.model_copy(update={"weights": str(moved)}), Path).recipe.taps == recipe.taps


def test_a_relative_path_is_kept_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "x.onnx")
    monkeypatch.chdir(tmp_path)
    assert resolve("x.onnx").recipe.weights == str(tmp_path / "x.onnx")


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
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.left = [{"images": rng.standard_normal((1, 3, SIDE, SIDE), np.float32)} for _ in range(4)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_int8_files(form: QuantFormat, tmp_path: Path) -> None:
    quantize_static(save(tmp_path / "x.onnx"), tmp_path / "q.onnx", Calibration(), quant_format=form)
    backbone = resolve(tmp_path / "q.onnx")
    found = encode(backbone, images())["embedding"]
    expected = by_torch(inputs(backbone, images()))["flat"]
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert found.shape == expected.shape and cosines.min() > 0.99
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


@pytest.mark.parametrize(
    "middle",
    [
        [helper.make_node("Reshape", ["pooled", "shape"], ["flat"])],
        [
            helper.make_node("ReduceMean", ["pooled"], ["mean"], axes=[0]),
            helper.make_node("Sub", ["pooled", "mean"], ["less"]),
            helper.make_node("Add", ["less", "pooled"], ["more"]),
            helper.make_node("Flatten", ["more"], ["flat"]),
        ],
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


def test_tensors_in_another_file(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    path = tmp_path / "net" / "x.onnx"
    options = {"save_as_external_data": True, "location": "x.data", "size_threshold": 0}
    onnx.save(network(), path, **options)
    recipe = resolve(path).recipe
    near(encode(resolve(path), images())["embedding"], by_torch(inputs(resolve(path), images()))["flat"])
    parts = [hashlib.sha256(each.read_bytes()).hexdigest() for each in (path, tmp_path / "net" / "x.data")]
    assert recipe.weights_sha256 == hashlib.sha256(f"{parts[0]}  \n{parts[1]}  x.data\n".encode()).hexdigest()
    onnx.save(network(seed=1), tmp_path / "net" / "y.onnx", **options)  # the same graph over other numbers
    assert resolve(path).recipe.weights_sha256 != recipe.weights_sha256


def test_tensors_in_another_file_that_is_fetched_elsewhere(tmp_path: Path) -> None:
    """As from S3: each file comes to a folder of its own."""
    onnx.save(network(), tmp_path / "x.onnx", save_as_external_data=True, location="x.data", size_threshold=0)

    def fetch(address: str) -> Path:
        name = address.removeprefix("s3://bucket/")
        copy = tmp_path / "cache" / name.replace(".", "_") / name
        if (tmp_path / name).is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((tmp_path / name).read_bytes())
        return copy

    backbone = resolve_backbone(RecipeConfig(backbone="onnx:s3://bucket/x.onnx"), fetch)
    assert backbone.recipe.weights == "s3://bucket/x.onnx"
    near(encode(backbone, images())["embedding"], by_torch(inputs(backbone, images()))["flat"])


def levels_network(path: Path, metadata: dict[str, str]) -> Path:
    """A network that takes uint8 NHWC and normalises inside, as `tlray export --network` writes it."""
    model = network(metadata=metadata)
    graph = model.graph
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("levels", TensorProto.UINT8, ["n", SIDE, SIDE, 3]))
    values = {name: np.array(PREPROCESSING[name], np.float32).reshape(3, 1, 1) * 255 for name in ("mean", "std")}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    before = [
        helper.make_node("Cast", ["levels"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["numbers"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["nchw", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["images"]),
    ]
    nodes = [*before, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, path)
    return path


def test_levels_of_a_network_that_normalises_itself(tmp_path: Path) -> None:
    path = levels_network(tmp_path / "x.onnx", {"tlray.preprocessing": json.dumps(PREPROCESSING)})
    backbone = resolve(path)
    preprocessing = backbone.recipe.preprocessing
    assert (preprocessing.scale, preprocessing.mean, preprocessing.std) == ((0, 255), (0, 0, 0), (1, 1, 1))
    assert preprocessing.resize == (40, 40)
    mean, std = (torch.tensor(PREPROCESSING[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    inputs_BCHW = (torch.from_numpy(images()).permute(0, 3, 1, 2) / 255 - mean) / std
    near(encode(backbone, images())["embedding"], by_torch(inputs_BCHW)["flat"])
