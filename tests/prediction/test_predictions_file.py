"""`tlray predict --out x.csv`: one file, read back by pandas and Polars, against the table that it is written from."""

from pathlib import Path

import pandas as pd
import polars as pl
import pytest

from tests.photos import error_of, frame_of, result_of, tlray, write_photos
from tests.trained import CLASSES, save_trained, write_lake
from tlray.prediction import predictions_file


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, one file that is none, weights and models of all tasks."""
    lake = write_lake(tmp_path_factory.mktemp("lake"), 8, b"\x89PNG no picture")
    for task in ("multi", "regression"):
        save_trained(lake / task, lake / "weights.safetensors", task=task)
    return lake


def arguments(lake: Path, out: Path, *more: str | Path, model: str = "model", source: Path | None = None) -> list[str | Path]:
    photos = source or lake / "photos"
    common = ["predict", "--local", "--source.uri", photos, "--max-failed-fraction", "0.5"]
    return [*common, "--model", lake / model, "--out", out, *more]


def test_a_csv_file_of_one_label_an_image(lake: Path, tmp_path: Path) -> None:
    result = result_of(tlray(*arguments(lake, tmp_path / "x.csv", "--top-k", "2", "--source.labels", "folder")))
    assert (tmp_path / "x.csv").is_file() and result["file"] == f"file://{tmp_path}/x.csv"
    found = pd.read_csv(tmp_path / "x.csv")
    assert list(found.columns) == ["uri", "label", "prediction", "probability", "label_2", "probability_2", "error"]
    table = frame_of(tmp_path / "x.csv.table").sort("uri")
    assert found["uri"].tolist() == table["uri"].to_list() and len(found) == 9
    assert found["error"].notna().sum() == 1 and found["prediction"].isna().sum() == 1
    good, rows = found[found["error"].isna()], table.filter(pl.col("status") == "ok")
    assert good["prediction"].tolist() == rows["prediction"].to_list()
    assert good["label"].tolist() == rows["label"].to_list()
    assert good["label_2"].tolist() == [labels[1] for labels in rows["top_labels"]]
    assert good["probability_2"].tolist() == pytest.approx([row[1] for row in rows["top_probabilities"].to_list()])


def test_several_labels_and_numbers(lake: Path, tmp_path: Path) -> None:
    result_of(tlray(*arguments(lake, tmp_path / "m.csv", "--top-k", "1", "--threshold", "0.3", model="multi")))
    found = pl.read_csv(tmp_path / "m.csv")
    assert found.columns == ["uri", "predictions", "label_1", "probability_1", "error"]
    table = frame_of(tmp_path / "m.csv.table").sort("uri")
    joined = [None if row is None else ";".join(row) or None for row in table["predictions"].to_list()]
    assert [text or None for text in found["predictions"].to_list()] == joined
    result_of(tlray(*arguments(lake, tmp_path / "v.csv", model="regression")))
    found = pl.read_csv(tmp_path / "v.csv")
    assert found.columns == ["uri", *CLASSES, "error"]
    values = [row for row in frame_of(tmp_path / "v.csv.table").sort("uri")["values"].to_list() if row is not None]
    assert found.drop_nulls(CLASSES[0]).select(CLASSES).to_numpy().tolist() == [pytest.approx(row) for row in values]


def test_a_parquet_file_has_all_columns_in_order_of_uri(lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result_of(tlray(*arguments(lake, tmp_path / "x.parquet", "--embeddings")))
    found = pl.read_parquet(tmp_path / "x.parquet")
    table = frame_of(tmp_path / "x.parquet.table").drop("status").sort("uri")
    assert found.to_dicts() == table.select(found.columns).to_dicts() and set(found.columns) == set(table.columns)
    monkeypatch.setattr(predictions_file, "memory_budget_bytes", lambda: 0)  # a part at a time
    result_of(tlray(*arguments(lake, tmp_path / "x.parquet", "--embeddings")))
    streamed = pl.read_parquet(tmp_path / "x.parquet")
    assert streamed.columns == found.columns and streamed.sort("uri").equals(found)


def test_the_file_follows_its_source(lake: Path, tmp_path: Path) -> None:
    source = tmp_path / "photos"
    paths = write_photos(source, 4)
    first = result_of(tlray(*arguments(lake, tmp_path / "x.csv", source=source)))
    paths[0].unlink()
    write_photos(source, 2, first=50)
    again = result_of(tlray(*arguments(lake, tmp_path / "x.csv", source=source)))
    assert (first["new"], again["new"], again["deleted"], again["unchanged"]) == (4, 2, 1, 3)
    names = {uri.rpartition("/")[2] for uri in pl.read_csv(tmp_path / "x.csv")["uri"]}
    assert names == {path.name for path in source.rglob("*.jpg")}
    (tmp_path / "x.csv").unlink()
    dry = result_of(tlray(*arguments(lake, tmp_path / "x.csv", "--dry-run", source=source)))
    assert dry["file"] == first["file"] and not (tmp_path / "x.csv").exists()
    result_of(tlray(*arguments(lake, tmp_path / "x.csv", source=source)))
    assert len(pl.read_csv(tmp_path / "x.csv")) == 5


def test_too_many_failures_leave_the_file_as_it_was(lake: Path, tmp_path: Path) -> None:
    source = tmp_path / "photos"
    write_photos(source, 4)
    result_of(tlray(*arguments(lake, tmp_path / "x.csv", source=source)))
    before = (tmp_path / "x.csv").read_bytes()
    for number in range(40):
        (source / f"{number}.jpg").write_bytes(b"\x89PNG no picture")
    assert tlray(*arguments(lake, tmp_path / "x.csv", source=source)).returncode == 3
    assert (tmp_path / "x.csv").read_bytes() == before


def test_what_is_refused(lake: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("uri,label\n")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "folder.csv" / "notes.txt").write_text("x")
    for out, more, message in (
        ("x.json", (), "expected a .csv or .parquet file, or a folder for a table"),
        ("x.csv", ("--embeddings",), "embeddings do not fit into the cells of"),
        ("mine.csv", (), "mine.csv is there, and `tlray predict` did not write it"),
        ("folder.csv", (), "folder.csv is there, and `tlray predict` did not write it"),
    ):
        outcome = tlray(*arguments(lake, tmp_path / out, *more))
        assert outcome.returncode == 2 and message in error_of(outcome)
    assert (tmp_path / "mine.csv").read_text() == "uri,label\n"
    assert {path.name for path in tmp_path.iterdir()} == {"mine.csv", "folder.csv"}


def test_a_table_of_that_name_goes_on_as_a_table(lake: Path, tmp_path: Path) -> None:
    """Version 0.1 made a table of any name."""
    result_of(tlray(*arguments(lake, tmp_path / "x")))
    (tmp_path / "x").rename(tmp_path / "x.csv")
    result = result_of(tlray(*arguments(lake, tmp_path / "x.csv")))
    assert (result["unchanged"], result.get("file")) == (9, None) and not (tmp_path / "x.csv.table").exists()
