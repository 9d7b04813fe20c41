"""`tlray export`: what onnxruntime computes of the files, against timm and torch alone."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from tests.photos import error_of, result_of, tlray
from tests.trained import CLASSES, plain_scores, save_trained, save_weights
from tlray.errors import BackboneError
from tlray.training.model import onnx_file
from tlray.training.model.model import load_model

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_weights(folder / "weights.safetensors")
    save_trained(folder, folder / "weights.safetensors")
    return folder


def run(file: Path, inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (only,) = session.get_inputs()
    return session.run(["scores"], {only.name: inputs})[0]


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_the_head_is_torchs(model: Path, rows: int) -> None:
    result = result_of(tlray("export", model))
    assert result["out"] == f"file://{model}/head.onnx" and result["largest_difference"] <= 1e-4
    features_BD = np.random.default_rng(rows).standard_normal(
        (rows, load_model(f"file://{model}").card.head.inputs), np.float32
    )
    expected_BK = plain_scores(model / "head.safetensors", torch.from_numpy(features_BD)).numpy()
    assert np.abs(run(model / "head.onnx", features_BD) - expected_BK).max() <= 1e-4


def test_the_network_is_timms(model: Path, tmp_path: Path) -> None:
    result_of(tlray("export", model, "--network", "--out", tmp_path / "x.onnx"))
    network = timm.create_model("test_resnet", num_classes=0).eval()
    weights = safetensors.torch.load_file(model / "weights.safetensors")
    network.load_state_dict({name: tensor for name, tensor in weights.items() if name in network.state_dict()})
    config = network.pretrained_cfg
    side = config["input_size"][1]
    images_BHWC = np.random.default_rng(0).integers(0, 256, (7, side, side, 3), np.uint8)
    pixels_BCHW = torch.from_numpy(images_BHWC).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(config[name]).reshape(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        expected_BK = plain_scores(model / "head.safetensors", network((pixels_BCHW - mean) / std)).numpy()
    assert np.abs(run(tmp_path / "x.onnx", images_BHWC) - expected_BK).max() <= 1e-4
    about = onnxruntime.InferenceSession(tmp_path / "x.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(about["tlray.classes"]) == list(CLASSES)
    assert json.loads(about["tlray.preprocessing"])["crop"] == [side, side]


def test_other_numbers_are_not_written(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_run", lambda data, name, inputs: np.ones((len(inputs), len(CLASSES)), np.float32))
    assert "computes other scores as ONNX" in error_of(tlray("export", model, "--out", tmp_path / "x.onnx"))
    assert not (tmp_path / "x.onnx").exists()


def test_a_network_that_cannot_be_converted_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(torch.nn.Module):
        def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
            return features_BD if features_BD.sum() > 0 else -features_BD

    with pytest.raises(BackboneError, match="cannot be written as ONNX"):
        onnx_file._to_onnx(Odd(), "features", torch.ones(2, 3), {})


def test_missing_packages_are_named_before_anything_else(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    outcome = tlray("export", model)
    assert outcome.returncode == 2
    assert "tlray export needs packages that are not installed: pip install onnxscript onnxruntime; or" in error_of(outcome)
    assert "[onnx]" in error_of(outcome) and "Traceback" not in outcome.stderr


def test_out_is_a_file(model: Path, tmp_path: Path) -> None:
    outcome = tlray("export", model, "--out", tmp_path)
    assert outcome.returncode == 2 and "which ends in .onnx" in error_of(outcome)
