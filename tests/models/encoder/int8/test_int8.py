"""Networks at int8: the numbers of their documents, near torch's at fp32, the same wherever they are computed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.encoder.engines.opened import pictures, resolve
from tlray.config import RecipeConfig
from tlray.errors import BackboneError, ConfigError, GoldenMismatchError, RecipeMismatchError
from tlray.models.backbones.any_backbone import resolve_any_backbone
from tlray.models.backbones.images import Backbone, to_network_input, with_taps
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.golden import make_encoder, make_recipe_file
from tlray.models.encoder.int8 import calibration
from tlray.models.encoder.int8.encoder import check_place, open_int8_encoder
from tlray.recipe import GOLDEN_TOLERANCE, Precision, Quantization, RecipeFile, digest_of, least_cosine

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
document = pytest.importorskip("tlray.models.encoder.int8.document", exc_type=ImportError)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return resolve("timm:test_resnet", "int8")


@pytest.fixture(scope="module")
def file(backbone: Backbone) -> RecipeFile:
    return make_recipe_file(backbone)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # for what is kept there


def quantization_of(file: RecipeFile) -> Quantization:
    assert file.quantization is not None
    return file.quantization


def encoder_of(file: RecipeFile, backbone: Backbone, **wishes: object) -> Encoder:
    encoder = make_encoder(file, Path, where="here", backbone=backbone, **wishes)  # type: ignore[arg-type]
    assert isinstance(encoder, Encoder)
    return encoder


def test_its_numbers_are_onnxruntimes_and_those_of_onnx_own_evaluator(backbone: Backbone, file: RecipeFile) -> None:
    images_BHWC = pictures(backbone, 5)
    encoder = encoder_of(file, backbone, lanes=2)
    found_BD = encoder.encode(images_BHWC)["embedding"]
    assert (encoder.engine, encoder.computed_by) == ("onnxruntime", "onnxruntime")
    content = document.Int8Document(backbone).at(quantization_of(file).ranges, file.exact_below)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    by_hand = [session.run(None, {"images": image_HWC[None]})[0] for image_HWC in images_BHWC]
    np.testing.assert_array_equal(found_BD, np.concatenate(by_hand))
    evaluator = onnx.reference.ReferenceEvaluator(onnx.load_model_from_string(content))
    (slowly_BD,) = evaluator.run(None, {"images": images_BHWC[:1]})
    assert least_cosine(found_BD[:1], slowly_BD) >= GOLDEN_TOLERANCE["int8"]


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_efficientnet"])
def test_near_plain_torch_at_fp32_but_not_the_same(name: str) -> None:
    backbone = resolve(name, "int8")
    images_BHWC = np.ascontiguousarray(pictures(backbone, 7)[4:])  # none of those that it is calibrated on
    with torch.inference_mode():
        images_BCHW = to_network_input(torch.from_numpy(images_BHWC), backbone.recipe.preprocessing)
        expected_BD = backbone.module.forward_head(backbone.module.forward_features(images_BCHW), pre_logits=True).numpy()
    file = make_recipe_file(backbone)
    found_BD = encoder_of(file, backbone).encode(images_BHWC)["embedding"]
    assert calibration.LEAST_COSINE <= least_cosine(found_BD, expected_BD) < 0.999999
    assert calibration.LEAST_COSINE <= quantization_of(file).least_cosine < 0.999999
    golden_BD = np.array(file.golden["embedding"])  # at fp32, as of any table
    assert calibration.LEAST_COSINE <= least_cosine(np.array(quantization_of(file).golden["embedding"]), golden_BD) < 0.999999


def test_no_sum_of_products_can_be_cut_off(backbone: Backbone, file: RecipeFile) -> None:
    """Two products of 8 bits in 16 bits, as processors without VNNI have them: 2 x 255 x 64 fits."""
    graph = onnx.load_model_from_string(document.Int8Document(backbone).at(quantization_of(file).ranges, 0)).graph
    weights = [onnx.numpy_helper.to_array(one) for one in graph.initializer if one.data_type == onnx.TensorProto.INT8]
    kernels = [weight for weight in weights if weight.ndim > 1]
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in backbone.module.modules())
    assert len(kernels) == convolutions and 2 * 255 * max(int(np.abs(kernel).max()) for kernel in kernels) < 2**15
    levels_O = np.abs(kernels[0]).reshape(len(kernels[0]), -1).max(axis=1)
    assert (levels_O == 64).all()  # each output channel has a scale of its own


IN_A_PROCESS = """
import sys
from pathlib import Path
import numpy as np
import torch
from tests.models.encoder.engines.opened import pictures, resolve
from tlray.models.encoder.golden import make_encoder
from tlray.recipe import RecipeFile
torch.set_num_threads(1)
backbone = resolve("timm:test_resnet", "int8")
file = RecipeFile.from_json(Path(sys.argv[1]).read_bytes(), sys.argv[1])
encoder = make_encoder(file, Path, where="here", backbone=backbone)
np.save(sys.argv[2], encoder.encode(pictures(backbone, 7))["embedding"])
"""


def test_another_process_gives_the_same_bits(backbone: Backbone, file: RecipeFile, tmp_path: Path) -> None:
    expected_BD = encoder_of(file, backbone, lanes=2).encode(pictures(backbone, 7))["embedding"]
    (tmp_path / "recipe.json").write_bytes(file.to_json())
    for name in ("made anew", "kept"):
        if name == "made anew":
            for kept in tmp_path.rglob("*.blob"):
                kept.unlink()
        arguments = [str(tmp_path / "recipe.json"), str(tmp_path / "found.npy")]
        subprocess.run([sys.executable, "-c", IN_A_PROCESS, *arguments], check=True, timeout=600)
        np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), expected_BD, err_msg=name)
    one_by_one = [encoder_of(file, backbone).encode(image_HWC[None])["embedding"] for image_HWC in pictures(backbone, 7)]
    np.testing.assert_array_equal(np.concatenate(one_by_one), expected_BD)


def test_changed_calibration_is_refused(backbone: Backbone, file: RecipeFile) -> None:
    assert RecipeFile.from_json(file.to_json(), "recipe.json") == file
    ranges = dict(quantization_of(file).ranges)
    first = next(iter(ranges))
    _, high = ranges[first]
    edited = file.to_json().replace(f" {high!r}\n".encode(), f" {high + 0.001!r}\n".encode(), 1)
    assert edited != file.to_json()
    with pytest.raises(RecipeMismatchError, match=r"quantization: .* its ranges were changed"):
        RecipeFile.from_json(edited, "recipe.json")
    without = file.model_copy(update={"quantization": None})
    with pytest.raises(RecipeMismatchError, match="quantization"):
        RecipeFile.from_json(without.to_json(), "recipe.json")

    def with_ranges(changed: dict[str, tuple[float, float]]) -> RecipeFile:
        found = quantization_of(file).model_copy(update={"ranges": changed, "sha256": digest_of(changed)})
        return file.model_copy(update={"quantization": found})

    with pytest.raises(GoldenMismatchError, match="at int8"):
        encoder_of(with_ranges({name: (1e-3 * low, 1e-3 * high) for name, (low, high) in ranges.items()}), backbone)
    with pytest.raises(ConfigError, match="versions that made it"):
        encoder_of(with_ranges({f"{name}_1": pair for name, pair in ranges.items()}), backbone)


def test_one_of_a_tables_taps_is_computed_by_the_tables_ranges() -> None:
    """As a model does whose head was trained on one column of several."""
    both = resolve("timm:test_resnet", "int8", taps=["layer2", "global_pool"])
    file = make_recipe_file(both)
    images_BHWC = pictures(both, 4)
    expected = encoder_of(file, both).encode(images_BHWC)
    for tap, column in both.recipe.columns.items():
        one, rounding = with_taps(both, [tap]), quantization_of(file)
        rounding = rounding.model_copy(update={"golden": {"embedding": rounding.golden[column]}})
        changes = {"recipe": one.recipe, "recipe_id": one.recipe.recipe_id, "quantization": rounding, "shapes": one.shapes}
        found_BD = encoder_of(file.model_copy(update=changes), one).encode(images_BHWC)["embedding"]
        assert least_cosine(found_BD, expected[column]) >= GOLDEN_TOLERANCE["int8"]  # operators are joined otherwise


def test_first_layers_stay_at_fp32_where_that_helps(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, count = calibration.calibrate(backbone)
    assert count == 0
    made = document.Int8Document(backbone)
    graph = onnx.load_model_from_string(made.at(whole.ranges, 3)).graph
    rounded = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    layers = [node.input[1] in rounded for node in graph.node if node.op_type == "Conv"]
    assert layers == [False] * 3 + [True] * (made.layers - 3)
    monkeypatch.setattr(calibration, "LEAST_COSINE", (whole.least_cosine + 1) / 2)
    monkeypatch.setattr(calibration, "MOST_EXACT", 1)
    better, more = calibration.calibrate(backbone)
    assert 0 < more <= made.layers and better.least_cosine > whole.least_cosine and better.ranges == whole.ranges


def test_networks_that_round_badly_are_refused(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "LEAST_COSINE", 0.9999999)
    with pytest.raises(
        BackboneError, match=r"timm:test_resnet computes too different .* expected at least .* use recipe\.prec"
    ):
        make_recipe_file(backbone)


def test_where_int8_cannot_be_computed(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="by onnxruntime, not by openvino"):
        check_place(backbone.recipe, engine="openvino")
    with pytest.raises(ConfigError, match="on CPUs, not on meta"):
        open_int8_encoder(backbone, None, 0, device="meta")
    with pytest.raises(ConfigError, match="torch does not compute"):
        Encoder(backbone)
    check_place(resolve("timm:test_resnet").recipe, engine="openvino", device="meta")
    texts = RecipeConfig(backbone="sentence-transformers:nowhere", precision=Precision(compute="int8"))
    with pytest.raises(ConfigError, match="for networks of images"):
        resolve_any_backbone(texts, Path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"compute int8 needs packages .* onnxscript; .* extra \[onnx\]"):
        check_place(backbone.recipe)
