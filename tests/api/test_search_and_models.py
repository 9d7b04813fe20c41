"""`tlray.Index` against NumPy, `tlray.Model` against the table of predictions that the command makes."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

import tlray
from tests.api.conftest import Made
from tests.photos import result_of
from tests.photos import tlray as command
from tlray.errors import ConfigError, ImageError, IndexMissingError, ModelMissingError, QueryError


def nearest(made: Made, query_D: np.ndarray, k: int, label: str | None = None) -> list[str]:
    """URIs by cosine, computed by NumPy from what Polars reads."""
    frame = pl.scan_delta(made.table).filter(pl.col("status") == "ok").collect()
    frame = frame if label is None else frame.filter(pl.col("label") == label)
    vectors_ND = np.array(frame["embedding"].to_list(), np.float64)
    cosines_N = vectors_ND @ query_D / np.linalg.norm(vectors_ND, axis=1) / np.linalg.norm(query_D)
    return [frame["uri"][int(at)] for at in np.argsort(-cosines_N)[:k]]


@pytest.fixture(scope="module")
def index(made: Made) -> tlray.Index:
    return tlray.Index(made.index)


def test_every_kind_of_query_finds_what_numpy_finds(made: Made, index: tlray.Index) -> None:
    table = tlray.open(made.table)
    uris, vectors_ND = table.to_numpy("uri"), table.to_numpy()
    paths = [uri.removeprefix("file://") for uri in uris[:3]]
    by_image = index.search(paths, k=4)
    for answer, vector_D in zip(by_image, vectors_ND, strict=False):
        assert [hit.uri for hit in answer.hits] == nearest(made, vector_D, 4)
        assert answer.hits[0].uri == f"file://{answer.query}" and answer.hits[0].score == pytest.approx(1, abs=1e-4)
    by_vector = index.search(vector=vectors_ND[:3], k=4)
    assert [[hit.uri for hit in answer.hits] for answer in by_vector] == [[hit.uri for hit in a.hits] for a in by_image]
    assert index.search(vector=vectors_ND[0])[0].hits[0].uri == uris[0]
    (by_uri,) = index.search(uri=uris[0], k=3)
    assert [hit.uri for hit in by_uri.hits] == nearest(made, vectors_ND[0], 4)[1:]
    (filtered,) = index.search(Image.open(paths[0]), k=3, label="cat")
    assert [hit.uri for hit in filtered.hits] == nearest(made, vectors_ND[0], 3, label="cat")
    (by_label,) = index.search(by_label="cat", k=2, prefix=[f"file://{made.folder}/photos/dog"])
    assert [hit.label for hit in by_label.hits] == ["dog", "dog"]


def test_answers_are_the_commands(made: Made, index: tlray.Index) -> None:
    image = str(made.photos[0])
    theirs = result_of(command("search", made.index, "--image", image, "-k", "3"))
    answers = index.search(image, k=3)
    ours = answers.to_dict()
    assert ours == {key: value for key, value in theirs.items() if key not in ("seconds", "table_versions_ahead")}
    assert len(answers) == 1 and answers.to_pandas()["uri"].tolist() == [hit.uri for hit in answers[0].hits]
    shown = answers._repr_html_()
    assert shown.count("data:image/jpeg;base64,") == 3 and image in shown
    assert index.about["rows"] == len(index) == 24 and index.version == 1 and index.table == made.results["extract"].table


@pytest.mark.parametrize(
    ("arguments", "error", "expected"),
    [
        ({}, ConfigError, "expected one of image, text, uri, by_label, vector, given none"),
        ({"image": "a.jpg", "by_label": "cat"}, ConfigError, "given image and by_label"),
        ({"by_label": "bird"}, QueryError, "bird"),
        ({"by_label": 3}, ConfigError, "by_label: expected text or a list of texts, given 3"),
        ({"vector": [1.0, 2.0]}, QueryError, r"\(1, 2\)"),
        ({"vector": "a"}, QueryError, "vector"),
        ({"by_label": "cat", "k": 0}, QueryError, "k"),
        ({"image": "/nowhere.jpg"}, ImageError, "/nowhere.jpg"),
    ],
)
def test_wrong_queries(arguments: dict[str, Any], error: type[Exception], expected: str, index: tlray.Index) -> None:
    with pytest.raises(error, match=expected):
        index.search(**arguments)


def test_no_index_and_no_model(tmp_path: Any) -> None:
    with pytest.raises(IndexMissingError):
        tlray.Index(tmp_path)
    with pytest.raises(ModelMissingError):
        tlray.Model(tmp_path)


def test_a_model_predicts_what_the_command_stores(made: Made) -> None:
    model = tlray.Model(made.model)
    stored = pl.scan_delta(made.predictions).filter(pl.col("status") == "ok").collect().sort("uri")
    predictions = model.predict(stored["uri"].to_list(), top_k=2)
    assert predictions.labels.tolist() == stored["prediction"].to_list()
    for ours, theirs in zip(predictions, stored.iter_rows(named=True), strict=True):
        assert ours["image"] == theirs["uri"] and ours["top_labels"] == theirs["top_labels"]
        assert ours["top_probabilities"] == pytest.approx(theirs["top_probabilities"], rel=1e-5)
    assert set(model.classes) == {"cat", "dog"} and model.task == "single" and "validation" in model.metrics
    assert predictions.to_dict()["predictions"] == list(predictions) and "<table>" in predictions._repr_html_()
    assert predictions.to_pandas()["prediction"].tolist() == predictions.labels.tolist()


def test_a_model_and_images_that_cannot_be_used(made: Made) -> None:
    model = tlray.Model(made.model)
    with pytest.raises(ImageError, match="input 1"):
        model.predict([made.photos[0], b""])
    predictions = model.predict(iter([made.photos[0], b"", made.photos[1]]), on_error="nan")
    assert [row["image"] for row in predictions] == [str(made.photos[0]), "input 1", str(made.photos[1])]
    assert predictions.labels[1] is None and predictions[1]["probability"] is None and predictions.labels[2] is not None
    with pytest.raises(ConfigError, match="top_k 0"):
        model.predict(made.photos[0], top_k=0)
    with pytest.raises(ConfigError, match="labels, not numbers"):
        _ = predictions.values


def test_a_regression(made: Made, tmp_path: Any) -> None:
    table = tlray.open(made.table)
    rows = "".join(f"{uri},{number}\n" for number, uri in enumerate(table.to_numpy("uri")))
    (tmp_path / "ages.csv").write_text(f"uri,age\n{rows}")
    tlray.train(table, tmp_path / "m", labels=tmp_path / "ages.csv", label_columns=["age"], task="regression", kind="ridge")
    predictions = tlray.Model(tmp_path / "m").predict([*made.photos[:2], b""], on_error="nan")
    assert predictions.values.shape == (3, 1) and np.isnan(predictions.values[2]).all()
    with pytest.raises(ConfigError, match="a regression gives numbers"):
        _ = predictions.labels
