"""A table of an ONNX file's embeddings from the command line: extended, trained on, predicted with, searched, exported."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torchvision import transforms

from tests.models.libraries.onnx.networks import PREPROCESSING, SIDE, by_torch, network, save
from tests.photos import error_of, frame_of, result_of, tlray, write_photos


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a network and the table of its embeddings."""
    folder = tmp_path_factory.mktemp("lake")
    write_photos(folder / "photos", 24)
    save(folder / "x.onnx")
    extract(folder)
    return folder


def extract(folder: Path, file: str = "x.onnx", *more: str) -> dict:
    arguments = ("extract", folder / "photos", folder / "t", "--labels", "folder", "--local", "--storage", "full")
    return result_of(tlray(*arguments, "--backbone", f"onnx:{folder / file}", *more))


def prepared(paths: list[Path]) -> torch.Tensor:
    """As torchvision prepares the photos."""
    values = transforms.Normalize(PREPROCESSING["mean"], PREPROCESSING["std"])
    steps = transforms.Compose([transforms.Resize(40), transforms.CenterCrop(SIDE), transforms.ToTensor(), values])
    return torch.stack([steps(Image.open(path).convert("RGB")) for path in paths])


def test_the_table_holds_torchs_numbers(lake: Path) -> None:
    frame = frame_of(lake / "t")
    expected_BD = by_torch(prepared([Path(uri.removeprefix("file://")) for uri in frame["uri"]]))["flat"]
    found_BD = np.array(frame["embedding"].to_list())
    cosines = (found_BD * expected_BD).sum(1) / np.linalg.norm(found_BD, axis=1) / np.linalg.norm(expected_BD, axis=1)
    assert len(frame) == 24 and cosines.min() >= 0.9999


def test_more_photos_and_a_moved_file_go_on_with_the_table(lake: Path) -> None:
    write_photos(lake / "photos", 2, first=24)
    (lake / "moved").mkdir()
    (lake / "x.onnx").rename(lake / "moved" / "y.onnx")
    try:
        assert extract(lake, "moved/y.onnx")["new"] == 2
    finally:
        (lake / "moved" / "y.onnx").rename(lake / "x.onnx")


def test_another_file_is_another_recipe(lake: Path) -> None:
    save(lake / "z.onnx", seed=1)
    arguments = ("extract", lake / "photos", lake / "t", "--labels", "folder", "--local", "--storage", "full")
    assert "weights_sha256" in error_of(tlray(*arguments, "--backbone", f"onnx:{lake / 'z.onnx'}"))


def test_heads_search_and_export(lake: Path, tmp_path: Path) -> None:
    trained = result_of(tlray("train", lake / "t", tmp_path / "m", "--local", "--epochs", "3"))
    assert trained["out"].endswith("/m") if "out" in trained else trained
    predicted = result_of(
        tlray("predict", "--model", tmp_path / "m", "--source.uri", lake / "photos", "--out", tmp_path / "p", "--local")
    )
    assert predicted["failed"] == 0 and set(frame_of(tmp_path / "p")["prediction"]) <= {"cat", "dog"}
    result_of(tlray("index", lake / "t", tmp_path / "i"))
    photo = lake / "photos" / "dog" / "00004.jpg"
    found = result_of(tlray("search", "--index", tmp_path / "i", "--image", photo, "-k", "3"))
    assert found["answers"][0]["hits"][0]["uri"] == f"file://{photo}"
    assert result_of(tlray("export", tmp_path / "m"))["largest_difference"] <= 1e-4
    assert "export the head alone" in error_of(tlray("export", tmp_path / "m", "--network"))


def test_its_own_classifier_predicts(lake: Path, tmp_path: Path) -> None:
    said = {"tlray.preprocessing": json.dumps(PREPROCESSING), "tlray.classes": json.dumps(list("abcde"))}
    model = network(metadata=said)
    onnx.save(model, tmp_path / "x.onnx")
    arguments = ("predict", "--backbone", f"onnx:{tmp_path / 'x.onnx'}", "--source.uri", lake / "photos", "--local")
    result_of(tlray(*arguments, "--out", tmp_path / "p", "--top-k", "5"))
    frame = frame_of(tmp_path / "p")
    expected_BK = by_torch(prepared([Path(uri.removeprefix("file://")) for uri in frame["uri"]]))["scores"]
    found_BK = np.array([[row[0][row[1].index(name)] for name in "abcde"] for row in zip(*pairs(frame), strict=True)])
    assert np.allclose(found_BK, expected_BK, atol=1e-3)


def pairs(frame: object) -> tuple[list, list]:
    return frame["top_probabilities"].to_list(), frame["top_labels"].to_list()


def test_what_export_writes_is_a_backbone(lake: Path, tmp_path: Path) -> None:
    """A head's network goes out as ONNX and comes back with its preprocessing and classes."""
    torchs = ("--backbone", "timm:test_resnet", "--weights", "random:7", "--compute", "fp32", "--storage", "full")
    result_of(tlray("extract", lake / "photos", tmp_path / "t", "--labels", "folder", "--local", *torchs))
    result_of(tlray("train", tmp_path / "t", tmp_path / "m", "--local", "--epochs", "2"))
    result_of(tlray("export", tmp_path / "m", "--network"))
    source = ("--source.uri", lake / "photos", "--local", "--top-k", "2")
    result_of(tlray("predict", "--model", tmp_path / "m", "--out", tmp_path / "p", *source))
    result_of(tlray("predict", "--backbone", f"onnx:{tmp_path / 'm' / 'model.onnx'}", "--out", tmp_path / "q", *source))
    ours, theirs = frame_of(tmp_path / "p"), frame_of(tmp_path / "q")
    assert ours["prediction"].to_list() == theirs["prediction"].to_list()
    assert np.allclose(ours["probability"], theirs["probability"], atol=1e-3)
