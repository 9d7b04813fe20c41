"""`tlray.open`: the rows that Polars reads, in every form, filtered and aligned."""

from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow.compute as pc
import pytest
import torch

import tlray
from tests.api.conftest import RECIPE, Made
from tests.photos import result_of
from tests.photos import tlray as command
from tlray.errors import ConfigError, TableError


@pytest.fixture(scope="module")
def frame(made: Made) -> pl.DataFrame:
    return pl.scan_delta(made.table).collect()


def test_every_form_has_the_same_rows_in_the_same_order(made: Made, frame: pl.DataFrame) -> None:
    table, expected = tlray.open(made.folder / "table"), frame.filter(pl.col("status") == "ok").sort("uri")
    arrow, pandas, vectors_ND = table.to_arrow(), table.to_pandas(["uri", "label"]), table.to_numpy()
    assert len(table) == len(arrow) == len(expected) == 24
    assert arrow["uri"].to_pylist() == pandas["uri"].tolist() == table.to_numpy("uri").tolist()
    assert pl.from_arrow(arrow).sort("uri").select(expected.columns).equals(expected)
    order = np.argsort(pandas["uri"])
    np.testing.assert_array_equal(vectors_ND[order], np.array(expected["embedding"].to_list(), np.float32))
    assert vectors_ND.dtype == np.float32 and table.to_numpy("label")[order].tolist() == expected["label"].to_list()
    tensor_ND = table.to_torch()
    assert tensor_ND.dtype == torch.float32 and torch.equal(tensor_ND, torch.tensor(vectors_ND))
    assert table.schema.names == arrow.column_names


def test_failed_rows_are_asked_for(made: Made, frame: pl.DataFrame) -> None:
    failed = tlray.open(made.table).filter(status="failed")
    expected = frame.filter(pl.col("status") == "failed")
    assert failed.to_arrow(["uri", "error"]).to_pydict() == expected.select("uri", "error").to_dict(as_series=False)
    everything = tlray.open(made.table).filter(status="all")
    assert len(everything) == len(frame) == 25 and everything.to_arrow(["status"])["status"].to_pylist().count("failed") == 1
    with pytest.raises(TableError, match="1 of 25 rows have no embedding, as they failed; leave status at ok"):
        everything.to_numpy()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"label": "cat"}, pl.col("label") == "cat"),
        ({"label": ["cat", "dog"]}, pl.lit(True)),
        ({"label": "c,t"}, pl.lit(False)),
        ({"condition": pc.field("width") > 95}, pl.col("width") > 95),
        ({"condition": pc.field("label").is_null()}, pl.lit(False)),
        ({"condition": pc.list_value_length(pc.field("embedding")) == 96}, pl.lit(True)),
        ({"condition": pc.field("status") == "failed", "status": "all"}, pl.col("status") == "failed"),
    ],
)
def test_filters(arguments: dict[str, Any], expected: pl.Expr, made: Made, frame: pl.DataFrame) -> None:
    rows = frame if "status" in arguments else frame.filter(pl.col("status") == "ok")
    table = tlray.open(made.table).filter(**arguments)
    assert sorted(table.to_arrow(["uri"])["uri"].to_pylist()) == sorted(rows.filter(expected)["uri"])
    assert len(table) == len(rows.filter(expected))


def test_filters_add_up_and_leave_the_table_as_it_is(made: Made, frame: pl.DataFrame) -> None:
    table = tlray.open(made.table)
    uri = sorted(table.to_arrow(["uri"])["uri"].to_pylist())[-1]
    both = table.filter(label="dog").filter(prefix=[uri[:-5], "file:///nowhere"])
    expected = frame.filter((pl.col("label") == "dog") & pl.col("uri").str.starts_with(uri[:-5]) & (pl.col("status") == "ok"))
    assert both.to_arrow(["uri"])["uri"].to_pylist() == expected["uri"].to_list() and len(table) == 24
    assert both.to_numpy().shape == (len(expected), 96)
    assert table.filter(label="none").to_numpy().shape == (0, 96)


def test_other_engines_read_its_files(made: Made) -> None:
    files = tlray.open(made.table).files
    assert duckdb.read_parquet(files, hive_partitioning=True).aggregate("count(*)").fetchall() == [(24,)]


def test_what_it_says_of_itself(made: Made) -> None:
    table = tlray.open(made.table)
    assert table.version == made.results["extract"].version and table.uri == made.results["extract"].table
    assert table.recipe.backbone == RECIPE["backbone"] and table.recipe_id == made.results["extract"].recipe_id
    assert table.embedding_columns == ["embedding"] and table.shapes == {"embedding": (96,)}
    assert table.to_dict() == result_of(command("show", made.table))
    assert repr(table) == f"<tlray.Table {table.uri}, version {table.version}, {RECIPE['backbone']}>"


def test_an_older_version_stays_what_it_was(made: Made, tmp_path: Any) -> None:
    tlray.extract(made.folder / "photos" / "dog", tmp_path / "t", local=True, **RECIPE)
    before = tlray.open(tmp_path / "t")
    tlray.extract(made.folder / "photos", tmp_path / "t", local=True, max_failed_fraction=0.1, **RECIPE)
    assert len(before) == 12 and len(tlray.open(tmp_path / "t")) == 24
    assert len(tlray.open(tmp_path / "t", version=before.version)) == 12


def test_a_notebook_shows_its_pictures(made: Made, tmp_path: Any) -> None:
    shown = tlray.open(made.table)._repr_html_()
    assert shown.count("data:image/jpeg;base64,") == 8 and "24 rows" in shown
    failed = tlray.open(made.table).filter(status="failed")._repr_html_()
    assert "<img" not in failed and "bad.jpg" in failed
    nothing = tlray.open(made.table).filter(label="<b>")._repr_html_()
    assert "<img" not in nothing


def test_wrong_arguments(made: Made, tmp_path: Any) -> None:
    table = tlray.open(made.table)
    with pytest.raises(TableError, match="no table at"):
        tlray.open(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"has no column embeding; it has uri, etag, label"):
        table.to_arrow(["embeding"])
    with pytest.raises(ConfigError, match="status: expected one of ok, failed, all, given 'bad'"):
        table.filter(status="bad")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="label: expected text or a list of texts"):
        table.filter(label=[1])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="the condition of filter does not fit"):
        table.filter(pc.field("wdth") > 3).to_arrow()


def test_a_table_of_predictions(made: Made) -> None:
    table = tlray.open(made.predictions)
    assert table.embedding_columns == [] and len(table) == 24
    assert set(table.to_numpy("prediction")) <= {"cat", "dog"}
    assert table.to_numpy("top_probabilities").shape == (24, 2)
    with pytest.raises(TableError, match="table of predictions without embeddings"):
        table.to_numpy()
