"""Tables at int8: extended and searched by the numbers that they were begun with, and refused before anything is written."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.photos import RECIPE, error_of, frame_of, result_of, tlray, write_photos
from tlray.lake.storage.uri import to_uri
from tlray.lake.table.table import Table
from tlray.search.query.query_encoder import QueryEncoder

pytest.importorskip("tlray.models.encoder.int8.document", exc_type=ImportError)

INT8 = [*RECIPE[:-1], "int8", "--recipe.precision.storage", "full"]


def test_a_table_is_extended_and_searched_at_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # for what is kept there
    first = write_photos(tmp_path / "photos", 6)
    arguments = ["extract", "--local", "--source.uri", tmp_path / "photos", *INT8]
    planned = result_of(tlray(*arguments, "--table", tmp_path / "grown", "--dry-run"))
    assert planned["dry_run"] and planned["estimated_seconds"] > 0 and not (tmp_path / "grown").exists()
    begun = result_of(tlray(*arguments, "--table", tmp_path / "grown"))
    assert begun["computed_by"] == {"onnxruntime": 6}
    kept = (tmp_path / "grown" / "recipe.json").read_bytes()
    assert json.loads(kept)["quantization"]["ranges"]
    write_photos(tmp_path / "photos", 6, first=6)
    monkeypatch.setenv("HOME", str(tmp_path / "another"))  # of a machine that has nothing yet
    grown = result_of(tlray(*arguments, "--table", tmp_path / "grown"))
    assert (grown["unchanged"], grown["computed_by"]) == (6, {"onnxruntime": 6})
    assert (tmp_path / "grown" / "recipe.json").read_bytes() == kept
    result_of(tlray(*arguments, "--table", tmp_path / "at-once"))
    vectors = [np.array(frame_of(tmp_path / name).sort("uri")["embedding"].to_list()) for name in ("grown", "at-once")]
    np.testing.assert_array_equal(*vectors)
    by_query_BD = QueryEncoder(Table.open(to_uri(str(tmp_path / "grown"))).recipe_file, "embedding").embed(
        [first[0].read_bytes()]
    )
    rows = frame_of(tmp_path / "grown")
    of_first = [row["embedding"] for row in rows.to_dicts() if row["uri"].endswith(first[0].name)]
    np.testing.assert_array_equal(by_query_BD, np.array(of_first, np.float32))


def test_a_head_is_trained_and_predicts_at_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_photos(tmp_path / "photos", 60)
    source = ["--source.uri", tmp_path / "photos", "--source.labels", "folder"]
    result_of(tlray("extract", "--local", *source, *INT8, "--table", tmp_path / "table"))
    result_of(tlray("train", "--table", tmp_path / "table", "--out", tmp_path / "model"))
    predict = ["predict", "--local", *source, "--model", tmp_path / "model", "--out", tmp_path / "p", "--embeddings"]
    assert result_of(tlray(*predict))["computed_by"] == {"onnxruntime": 60}
    rows, predicted = frame_of(tmp_path / "table"), frame_of(tmp_path / "p")
    assert predicted["embedding"].to_list() == rows["embedding"].to_list()
    head = safetensors.numpy.load_file(tmp_path / "model" / "head.safetensors")
    features_BD = (np.array(rows["embedding"].to_list()) - head["mean_D"]) * head["scale_D"]
    scores_BK = features_BD @ head["layers.0.weight"].T + head["layers.0.bias"]
    assert predicted["prediction"].to_list() == [("cat", "dog")[best] for best in scores_BK.argmax(axis=1)]


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        (["--engine", "openvino"], "computed by onnxruntime, not by openvino"),
        (["--engine", "torch"], "computed by onnxruntime, not by torch"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(wishes: list[str], expected: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 1)
    arguments = ["extract", "--local", "--source.uri", tmp_path / "photos", *INT8, *wishes]
    assert expected in error_of(tlray(*arguments, "--table", tmp_path / "table"), 2)
    assert not (tmp_path / "table").exists()
