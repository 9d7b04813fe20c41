"""What is wrong with an ONNX file, or what was said of it: one line that says what to do, before any worker."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.models.libraries.onnx.networks import PREPROCESSING, SAID, network, save
from tests.models.libraries.onnx.test_formats import encode, images, resolve
from tests.photos import error_of, tlray, write_photos
from tlray.config import RecipeConfig
from tlray.errors import BackboneError, ConfigError, WeightsError
from tlray.models.backbones.classifier import own_classifier
from tlray.models.backbones.images import resolve_backbone


def message_of(path: Path | str, kind: type[ConfigError] = ConfigError, **wishes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(path, **wishes)
    assert isinstance(caught.value, kind) and caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(path: Path, **inputs: tuple[int, list]) -> Path:
    """A network whose inputs are said to be others."""
    model = network()
    del model.graph.input[:]
    model.graph.input.extend(helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items())
    onnx.save(model, path)
    return path


def test_an_unknown_layer_is_answered_with_those_that_there_are_and_their_shapes(tmp_path: Path) -> None:
    message = message_of(save(tmp_path / "x.onnx"), BackboneError, taps=("relu3",))
    assert "no layer 'relu3'" in message and "relu2 (16x8x8)" in message and "flat (16)" in message
    assert "w1" not in message


def test_free_sizes_need_one(tmp_path: Path) -> None:
    path = save(tmp_path / "x.onnx", size=("h", "w"), metadata={})
    assert "images float (?, 3, ?, ?), images of any size: say theirs" in message_of(path, preprocessing=SAID | {"crop": None})
    assert resolve(path, preprocessing=SAID | {"crop": [48, 32], "resize": [48, 32]}).recipe.preprocessing.crop == (48, 32)


def test_a_fixed_size_is_not_another(tmp_path: Path) -> None:
    message = message_of(save(tmp_path / "x.onnx"), preprocessing={"crop": 24})
    assert "images of 32x32, but recipe.preprocessing.crop is 24x24" in message


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"features": (TensorProto.FLOAT, ["n", 2048])}, "takes features float (?, 2048), expected images of 4 dimensions"),
        ({"images": (TensorProto.INT64, ["n", 3, 32, 32])}, "takes images int64 (?, 3, 32, 32), expected images as float32"),
        ({"images": (TensorProto.FLOAT, ["n", 1, 28, 28])}, "expected images of 3 channels"),
        (
            {"images": (TensorProto.FLOAT, ["n", 3, 32, 32]), "mask": (TensorProto.BOOL, [1])},
            "has 2 inputs (images float (?, 3, 32, 32), mask bool (1)), expected one",
        ),
    ],
)
def test_inputs_that_are_no_images(inputs: dict, expected: str, tmp_path: Path) -> None:
    assert expected in message_of(changed(tmp_path / "x.onnx", **inputs), BackboneError)


def test_an_operator_that_is_missing_matters_only_before_the_tap(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    onnx.save(network(after=[helper.make_node("Unheard", ["logits"], ["more"], domain="nobody")]), path)
    assert encode(resolve(path), images())["embedding"].shape == (5, 16)
    message = message_of(path, BackboneError, taps=("more",))
    assert "cannot compute" in message and "up to more" in message and "Unheard" in message


def test_opsets_that_are_too_old_or_too_new(tmp_path: Path) -> None:
    model = network()
    model.opset_import[0].version = 6
    onnx.save(model, tmp_path / "old.onnx")
    assert "is of opset 6, expected 7 or later: convert it" in message_of(tmp_path / "old.onnx", BackboneError)
    model.opset_import[0].version = 99
    onnx.save(model, tmp_path / "new.onnx")
    message = message_of(tmp_path / "new.onnx", BackboneError)
    assert "cannot compute" in message and "opset" in message.lower()


def test_tensors_in_files_that_are_missing_or_short_or_elsewhere(tmp_path: Path) -> None:
    path, data = tmp_path / "x.onnx", tmp_path / "x.data"
    onnx.save(network(), path, save_as_external_data=True, location="x.data", size_threshold=0)
    data.write_bytes(data.read_bytes()[:-100])
    assert "keeps tensors in x.data, which has" in message_of(path, WeightsError)
    data.unlink()
    assert "keeps tensors in x.data, which is not there" in message_of(path, WeightsError)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "../x.data"
    path.write_bytes(model.SerializeToString())
    assert "outside of its folder: '../x.data'" in message_of(path, WeightsError)


def test_how_images_are_prepared_is_demanded_in_full(tmp_path: Path) -> None:
    path = save(tmp_path / "x.onnx", metadata={})
    message = message_of(path)
    assert "give recipe.preprocessing resize, fit, interpolation, channels, scale, mean, std" in message
    assert "by a preset, keras:caffe, keras:tf, keras:torch" in message
    assert "recipe.preprocessing channels, scale (" in message_of(path, preprocessing=PREPROCESSING)
    with_preset = {key: SAID[key] for key in ("resize", "fit", "interpolation")} | {"preset": "keras:caffe"}
    preprocessing = resolve(path, preprocessing=with_preset).recipe.preprocessing
    assert preprocessing.channels == "bgr" and preprocessing.crop == (32, 32)
    assert resolve(path, preprocessing=SAID).recipe.preprocessing == resolve(save(tmp_path / "y.onnx")).recipe.preprocessing


def test_metadata_that_are_no_preprocessing(tmp_path: Path) -> None:
    path = save(tmp_path / "x.onnx", metadata={"tlray.preprocessing": json.dumps(PREPROCESSING | {"crop": "big"})})
    assert "has metadata tlray.preprocessing that are no preprocessing" in message_of(path, BackboneError)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x08\x01", b"<html>"])
def test_files_that_are_no_models(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    assert "is not an ONNX model" in message_of(tmp_path / "x.onnx", BackboneError)


def test_a_file_that_breaks_off(tmp_path: Path) -> None:
    path = save(tmp_path / "x.onnx")
    path.write_bytes(path.read_bytes()[:2000])
    assert "is not an ONNX model, or not all of one" in message_of(path, BackboneError)


def test_weights_that_an_onnx_file_does_not_take(tmp_path: Path) -> None:
    path = save(tmp_path / "x.onnx")
    assert "holds its weights: leave out weights" in message_of(path, WeightsError, weights="random:0")
    assert "weights of its own" in message_of("file", WeightsError, weights="random:0")
    assert "say which one" in message_of("file", BackboneError)
    assert "there is no file" in message_of(tmp_path / "y.onnx", WeightsError)


def test_an_onnx_file_where_torch_weights_or_a_library_are_expected(tmp_path: Path) -> None:
    path = save(tmp_path / "x.onnx")
    with pytest.raises(BackboneError, match=f"a file stands after its library: give onnx:{path}"):
        resolve_backbone(RecipeConfig(backbone=str(path)), Path)
    with pytest.raises(WeightsError, match=f"give --backbone onnx:{path}, and no weights"):
        resolve_backbone(RecipeConfig(backbone="timm:test_resnet", weights=str(path)), Path)


def test_levels_that_are_none(tmp_path: Path) -> None:
    model = network(metadata={"tlray.preprocessing": json.dumps(PREPROCESSING)})
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    model.graph.node[0].input[0] = "numbers"
    model.graph.node.insert(0, helper.make_node("Cast", ["images"], ["numbers"], to=TensorProto.FLOAT))
    onnx.save(model, tmp_path / "x.onnx")
    assert "the model takes levels, uint8" in message_of(tmp_path / "x.onnx", preprocessing={"std": [0.5, 0.5, 0.5]} | SCALED)


SCALED = {"scale": [0, 1], "mean": [0, 0, 0]}


def test_a_layer_of_no_floats_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    onnx.save(network(after=[helper.make_node("ArgMax", ["logits"], ["best"], axis=1)]), path)
    assert "no layer 'best'" in message_of(path, BackboneError, taps=("best",))


def test_scores_of_several_labels_are_no_classes(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="ends in Sigmoid"):
        own_classifier(resolve(save(tmp_path / "x.onnx", last="Sigmoid")), keep_embeddings=False)
    softmax = [
        helper.make_node("Exp", ["logits"], ["exp"]),
        helper.make_node("ReduceSum", ["exp", "axis"], ["sum"], keepdims=1),
        helper.make_node("Div", ["exp", "sum"], ["scores"]),
    ]
    model = network(last=None, after=softmax)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
    model.graph.output[0].name = "scores"
    onnx.save(model, tmp_path / "y.onnx")
    with pytest.raises(ConfigError, match="gives probabilities"):
        own_classifier(resolve(tmp_path / "y.onnx"), keep_embeddings=False)


def test_packages_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = message_of(save(tmp_path / "x.onnx"))
    assert "needs packages that are not installed: pip install onnxruntime" in message and "[onnx]" in message


TF2ONNX = "python -m tf2onnx.convert"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("graph.pb", f"{TF2ONNX} --graphdef {{path}} --inputs <input>:0 --outputs <output>:0 --output model.onnx"),
        ("model.tflite", f"{TF2ONNX} --tflite {{path}} --output model.onnx"),
        ("resnet.dnn", "cntk.Function.load('{path}').save('model.onnx', format=cntk.ModelFormat.ONNX)"),
        ("saved/saved_model.pb", f"{TF2ONNX} --saved-model {{folder}} --output model.onnx"),
        ("saved", f"{TF2ONNX} --saved-model {{path}} --output model.onnx"),
    ],
)
@pytest.mark.parametrize("as_weights", [True, False, None])
def test_models_of_tensorflow_and_cntk_get_the_command_that_converts_them(
    name: str, command: str, as_weights: bool | None, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if name == "saved":
        path.mkdir()
        (path / "saved_model.pb").write_bytes(b"\x08\x01")
    else:
        path.write_bytes(b"\x08\x01")
    recipe = {
        True: {"backbone": "timm:test_resnet", "weights": str(path)},
        False: {"backbone": f"onnx:{path}"},
        None: {"backbone": str(path)},
    }[as_weights]
    with pytest.raises(ConfigError) as caught:
        resolve_backbone(RecipeConfig.model_validate(recipe), Path)
    assert command.format(path=path, folder=path.parent) in str(caught.value)
    assert "--backbone onnx:model.onnx" in str(caught.value)


def test_the_command_ends_with_one_line_and_code_2(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    path = save(tmp_path / "x.onnx")
    arguments = ("extract", tmp_path / "photos", tmp_path / "t", "--local", "--backbone", f"onnx:{path}")
    assert "relu2 (16x8x8)" in error_of(tlray(*arguments, "--taps", "relu3"))
    assert not (tmp_path / "t").exists()


def test_a_network_that_cannot_be_trained_or_exported(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 4)
    path = save(tmp_path / "x.onnx")
    arguments = ("train", "--source.uri", tmp_path / "photos", "--source.labels", "folder", "--out", tmp_path / "m", "--local")
    message = error_of(tlray(*arguments, "--backbone", f"onnx:{path}", "--network.freeze", "none"))
    assert "cannot be trained: an ONNX model computes and does not learn; train a head" in message
