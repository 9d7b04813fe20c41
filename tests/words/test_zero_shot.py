"""Class names in place of a trained head, held against NumPy on the tensors of the weights file alone."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import yaml

import tlray as api
from tests.photos import error_of, frame_of, result_of, tlray, write_photos
from tests.words.conftest import Collection
from tests.words.pictures import COLOURS, HELD_OUT, NAMES
from tests.words.test_search import plain_texts
from tests.words.towers import Texts

TEMPLATES = ("a photo of a {}.", "the {}", "{}")
ATOL = 2e-3
"""Of probabilities: stored vectors keep 10 mantissa bits, and cosines are multiplied by up to 100."""


def predict(collection: Collection, out: Path, *more: object) -> dict:
    return result_of(tlray("predict", collection.pictures, out, "--local", *collection.recipe, *map(str, more)))


def plain_probabilities(collection: Collection, classes: tuple[str, ...], templates: tuple[str, ...]) -> pl.DataFrame:
    """By the definition of CLIP's authors, from the vectors of the table of embeddings and the weights file."""
    frame = frame_of(collection.table)
    images_ND = np.array(frame["embedding"].to_list(), np.float64)
    images_ND /= np.linalg.norm(images_ND, axis=1, keepdims=True)
    vectors = []
    for name in classes:
        texts_TD = plain_texts(collection, [template.format(name) for template in templates])
        mean_D = (texts_TD / np.linalg.norm(texts_TD, axis=1, keepdims=True)).mean(axis=0)
        vectors.append(mean_D / np.linalg.norm(mean_D))
    scale = np.exp(float(safetensors.torch.load_file(collection.weights)["logit_scale"]))
    powers_NK = np.exp(scale * images_ND @ np.stack(vectors).T)
    return frame.select("uri").with_columns(p=pl.Series((powers_NK / powers_NK.sum(axis=1, keepdims=True)).tolist()))


@pytest.mark.parametrize("templates", [TEMPLATES[:1], TEMPLATES])
def test_predictions_are_what_numpy_computes(collection: Collection, tmp_path: Path, templates: tuple[str, ...]) -> None:
    flags = [] if templates == TEMPLATES[:1] else ["--templates", *templates]
    predict(collection, tmp_path / "p", "--classes", *NAMES, "--top-k", len(NAMES), *flags)
    frame = frame_of(tmp_path / "p")
    expected_NK = np.array(plain_probabilities(collection, NAMES, templates)["p"].to_list())
    at_NK = np.array([[NAMES.index(label) for label in labels] for labels in frame["top_labels"]])
    found_NK = np.array(frame["top_probabilities"].to_list())
    assert np.allclose(found_NK, np.take_along_axis(expected_NK, at_NK, axis=1), atol=ATOL)
    assert (np.diff(found_NK, axis=1) <= 0).all() and frame["probability"].to_list() == found_NK[:, 0].tolist()
    names = [Path(uri).stem for uri in frame["uri"]]
    accuracy = np.mean([ours == name for ours, name in zip(frame["prediction"], names, strict=True)])
    print(
        f"zero-shot accuracy over {len(NAMES)} names, {len(templates)} templates: {accuracy:.2f}, chance {1 / len(NAMES):.2f}"
    )
    assert accuracy > 0.7


def test_a_csv_of_colours_and_the_next_run(collection: Collection, tmp_path: Path) -> None:
    """Of one text with commas; the pairs that training never saw are right as well."""
    file = tmp_path / "colours.csv"
    first = predict(collection, file, "--classes", ", ".join(COLOURS), "--top-k", 2)
    frame = pl.read_csv(file)
    assert frame.columns == ["uri", "prediction", "probability", "label_2", "probability_2", "error"]
    unseen = {collection.uri(*pair) for pair in HELD_OUT}
    right = [uri.split("/")[-2] == said for uri, said in frame.select("uri", "prediction").iter_rows() if uri in unseen]
    assert len(right) == len(HELD_OUT) and np.mean(right) > 0.8
    again = predict(collection, file, "--classes", *COLOURS, "--top-k", 2)
    assert (again["unchanged"], again["new"], again["model_id"]) == (96, 0, first["model_id"])
    shown = result_of(tlray("show", f"{file}.table"))["output"]
    assert shown["templates"] == ["a photo of a {}."] and shown["model"].endswith("by words")


def test_a_table_goes_on_with_its_own_head(collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine's text tower differs in its last bits; words that differ are another model."""
    run = ["predict", tmp_path / "photos", tmp_path / "p", "--local", *collection.recipe]
    write_photos(tmp_path / "photos", 4)
    opened, open_tower = [], Texts.__init__
    monkeypatch.setattr(Texts, "__init__", lambda *given: opened.append(1) or open_tower(*given))
    first = result_of(tlray(*run, "--classes", "red", "blue"))
    assert len(opened) == 1  # for the head and for the golden texts
    write_photos(tmp_path / "photos", 2, first=10)
    with monkeypatch.context() as patch:
        patch.setattr("tests.words.towers.Texts.encode", lambda *_: pytest.fail("the text tower was asked"))
        again = result_of(tlray(*run, "--classes", "red", "blue"))
    assert (again["new"], again["model_id"]) == (2, first["model_id"])
    other = error_of(tlray(*run, "--classes", "red", "blue", "--templates", "a {}"))
    assert "predictions of model" in other and "templates: ['a {}'], ['a photo of a {}.']" in other
    assert "classes: ['blue', 'red'], ['red', 'blue']" in error_of(tlray(*run, "--classes", "blue", "red"))
    result_of(tlray("verify", tmp_path / "p"))


def test_python_yaml_and_vectors_beside_predictions(collection: Collection, tmp_path: Path) -> None:
    classes = ["a cat, asleep", "7"]
    recipe = {"backbone": "towers:words", "weights": str(collection.weights), "precision": {"compute": "fp32"}}
    job = {"source": {"uri": str(collection.pictures)}, "recipe": recipe, "out": str(tmp_path / "p"), "classes": classes}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    result_of(tlray("predict", "--config", tmp_path / "job.yaml", "--local", "--embeddings"))
    frame = frame_of(tmp_path / "p")
    assert set(frame["top_labels"].explode()) == set(classes)
    lengths = np.linalg.norm(np.array(frame["embedding"].to_list()), axis=1)
    assert np.allclose(lengths, 1, atol=1e-3)
    result = api.predict(collection.pictures, tmp_path / "q", classes=classes, recipe=recipe, local=True)
    assert frame_of(tmp_path / "q")["prediction"].to_list() == frame["prediction"].to_list() and result.to_dict()["ok"] == 96


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--classes", "cat"], "classes: expected two names or more"),
        (["--classes", "cat", "cat"], "none of them empty or twice"),
        (["--classes", "cat,,dog"], "none of them empty or twice"),
        (["--classes", "cat", "dog", "--templates", "a photo"], "templates: expected sentences with a place"),
        (["--templates", "the {}"], "give classes too"),
        (["--classes", "cat,dog", "--model", "m"], "give recipe.backbone, and no model"),
        (["--classes", "cat,dog", "--taps", "9"], "layer 9"),
        (["--classes", "cat,dog", "--taps", "9", "10"], "names 2 layers"),
    ],
)
def test_bad_input_is_told(collection: Collection, tmp_path: Path, arguments: list[str], expected: str) -> None:
    process = tlray("predict", collection.pictures, tmp_path / "p", "--local", *collection.recipe, *arguments)
    assert expected in error_of(process)
    assert not (tmp_path / "p").exists()


def test_a_backbone_without_a_text_tower_says_which_have_one(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    recipe = ["--backbone", "timm:test_resnet", "--weights", "random:1"]
    message = error_of(tlray("predict", tmp_path / "photos", tmp_path / "p", "--local", *recipe, "--classes", "cat,dog"))
    assert "timm:test_resnet has no text tower" in message and "openclip:" in message and not (tmp_path / "p").exists()
