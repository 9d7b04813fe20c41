"""Searches among rows of which a condition holds: the nearest of what DuckDB lets through, by the version of the index."""

import shutil
from datetime import date, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

import tlray as library
from tests.factories import add_columns
from tests.photos import error_of, result_of, tlray
from tests.search.tables import Bench, exact, recall, rows_for, vectors_for
from tlray.columns.column import Column
from tlray.errors import QueryError, WhereError
from tlray.lake.table.table import Table
from tlray.search.query.searcher import Searcher
from tlray.search.rows.selection import Filter

FACTORIES = ["Flat", "HNSW16", "IVF32,Flat", "IVF16,SQ4"]
COLUMNS = [
    Column(name="price", type="number"),
    Column(name="site", type="text"),
    Column(name="id", type="integer"),  # which is a name of the index's own rows, too
    Column(name="tags", type="text[]"),
    Column(name="day", type="date"),
]
SITES = ["A", "Zürich", None, "O'Brien", "B"]
WHERES = [
    "price < 10 and site = 'A'",
    "id < 140",
    "id = 777",
    "id in (101, 102, 103, 205, 308, 513, 821, 1334)",
    "site is null and price is not null",
    "list_contains(tags, 'rare')",
    "not list_contains(tags, 'even') and day >= '2026-02-01'",
    "label = 'label 1' and site <> 'A'",
    "ends_with(uri, '5.jpg') or site = 'O''Brien'",
    "price is null",
]


def tags_of(number: int) -> list[str] | None:
    if number % 11 == 0:
        return None
    return ["rare"] if number % 401 == 1 else [] if number % 2 else ["even", "x"]


def with_values(rows: pa.Table, raised: float = 0.0) -> pa.Table:
    """Values by the number in the name; `raised` is added to the price."""
    numbers = [int(uri[-10:-4]) for uri in rows["uri"].to_pylist()]
    values = {
        "price": [None if number % 7 == 0 else number % 50 + raised for number in numbers],
        "site": [SITES[number % 5] for number in numbers],
        "id": numbers,
        "tags": [tags_of(number) for number in numbers],
        "day": [date(2026, 1, 1) + timedelta(number % 60) for number in numbers],
    }
    for column in COLUMNS:
        rows = rows.append_column(column.field, pa.array(values[column.name], column.field.type))
    return rows


@pytest.fixture(scope="module", params=FACTORIES)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """2,400 rows, some of them changed and some moved after the index was built."""
    bench = Bench(tmp_path_factory.mktemp("where"))
    add_columns(bench.table, COLUMNS)
    parts = bench.commit([with_values(rows_for(range(at, at + 300))) for at in range(0, 2100, 300)])
    bench.index(factory=request.param)
    bench.commit([with_values(rows_for(range(100, 300)), 100.0)], parts[:1])
    bench.commit([with_values(rows_for(range(5000, 5300), folder="test"))])
    assert bench.index()["action"] == "updated"
    return bench


@pytest.fixture(scope="module")
def searcher(bench: Bench) -> Searcher:
    return Searcher.open(str(bench.index_path))


def allowed_by_duckdb(bench: Bench, where: str) -> set[str]:
    files = [f"{bench.table.uri.removeprefix('file://')}/{part.path}" for part in Table.open(bench.table.uri).parts()]
    query = f"select uri from read_parquet({files!r}, union_by_name=true) where {where}"
    return {uri for (uri,) in duckdb.sql(query).fetchall()}


@pytest.mark.parametrize("where", WHERES)
def test_the_nearest_of_what_duckdb_lets_through(bench: Bench, searcher: Searcher, where: str) -> None:
    allowed = allowed_by_duckdb(bench, where)
    assert allowed and searcher.count(Filter(where=where)) == len(allowed)
    uris, vectors_ND = bench.all()
    kept = np.array([at for at, uri in enumerate(uris) if uri in allowed])
    queries_BD = vectors_for(range(90_000, 90_050), "q")
    wanted_BK, _ = exact(queries_BD, vectors_ND[kept], min(10, len(kept)))
    wanted = [[uris[kept[at]] for at in row] for row in wanted_BK]
    found = [[hit["uri"] for hit in hits] for hits in searcher.search(queries_BD, 10, Filter(where=where)).to_lists()]
    assert all(set(row) <= allowed for row in found) and {len(row) for row in found} == {min(10, len(allowed))}
    if "SQ4" in searcher.card.factory:
        assert recall(found, wanted) >= 0.85
    else:
        assert recall(found, wanted) == 1.0  # all of few rows are compared


def test_conditions_go_with_other_filters(bench: Bench, searcher: Searcher) -> None:
    filters = Filter(("label 1",), ("file:///photos/train/",), "price < 10")
    allowed = allowed_by_duckdb(bench, "label = 'label 1' and starts_with(uri, 'file:///photos/train/') and price < 10")
    assert searcher.count(filters) == len(allowed) > 0
    assert searcher.count(Filter(where="false")) == 0
    assert searcher.search(vectors_for([1], "q"), 5, Filter(where="price > 1e9")).to_lists() == [[]]


def test_what_no_condition_can_be_asked_of_is_refused(searcher: Searcher) -> None:
    assert searcher.columns == {
        "uri": "text",
        "etag": "text",
        "label": "text",
        **{column.name: column.type for column in COLUMNS},
    }
    with pytest.raises(WhereError, match="the index has no column prise; did you mean price") as caught:
        searcher.search(vectors_for([1], "q"), 5, Filter(where="prise < 10"))
    assert isinstance(caught.value, QueryError)
    with pytest.raises(WhereError, match="has no column part"):
        searcher.count(Filter(where="part is null"))


def test_the_version_of_the_index_decides(tmp_path: Path) -> None:
    """An opened index answers by its own values, whatever becomes of its table and of its files' names."""
    bench = Bench(tmp_path)
    add_columns(bench.table, COLUMNS)
    parts = bench.commit([with_values(rows_for(range(at, at + 100))) for at in (0, 100)])
    bench.index()
    old = Searcher.open(str(bench.index_path))
    cheap = {int(uri[-10:-4]) for uri in allowed_by_duckdb(bench, "price < 10")}
    bench.commit([with_values(rows_for(range(100)), 1000.0)], parts[:1])  # written again with other values
    for _ in range(3):  # each time, only one part is another one
        assert bench.index(keep_versions=1)["moved"] in (0, 100)
        bench.commit([with_values(rows_for(range(9000 + bench._sequence, 9001 + bench._sequence)))])
    new = Searcher.open(str(bench.index_path))
    assert len(list((bench.index_path / "files").glob("columns-*"))) == 1
    shutil.rmtree(tmp_path / "table")
    assert {int(old.rows.uri(at)[-10:-4]) for at in np.flatnonzero(old.rows.mask(where="price < 10"))} == cheap
    found = {int(new.rows.uri(at)[-10:-4]) for at in np.flatnonzero(new.rows.mask(where="price < 10 and id < 9000"))}
    assert found == {number for number in cheap if number >= 100}


def test_an_index_of_before_columns_came_gets_them_with_its_next_version(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.commit([rows_for(range(100))])
    bench.index()
    assert "columns" not in {path.name.partition("-")[0] for path in (bench.index_path / "files").iterdir()}
    with pytest.raises(WhereError, match="has no column price; it has uri"):
        Searcher.open(str(bench.index_path)).count(Filter(where="price < 10"))
    add_columns(bench.table, COLUMNS[:1])
    bench.commit([with_values(rows_for(range(200, 300))).select([*part_columns(), "price"])])
    assert bench.index()["added"] == 100
    searcher = Searcher.open(str(bench.index_path))
    assert searcher.count(Filter(where="price is null")) == 100 + sum(number % 7 == 0 for number in range(200, 300))
    add_columns(bench.table, COLUMNS[1:2])
    bench.commit([with_values(rows_for(range(400, 500))).select([*part_columns(), "site"])])
    bench.index()
    searcher = Searcher.open(str(bench.index_path))
    assert searcher.count(Filter(where="site = 'A'")) == 20 == searcher.count(Filter(where="site = 'A' and price is null"))
    assert searcher.count(Filter(where="price < 1e9")) == sum(number % 7 != 0 for number in range(200, 300))


def part_columns() -> list[str]:
    return ["uri", "etag", "label", "width", "height", "embedding", "error"]


def test_the_command_and_python_ask_alike(bench: Bench, tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", vectors_for([1, 2], "q"))
    where = "site = 'Zürich' and price < 20"
    arguments = ["search", bench.index_path, "--vector", tmp_path / "q.npy", "-k", "3", "--where"]
    result = result_of(tlray(*arguments, where))
    assert result["filtered_rows"] == len(allowed_by_duckdb(bench, where))
    index = library.Index(bench.index_path)
    assert index.columns["tags"] == "text[]"
    hits = index.search(vector=vectors_for([1, 2], "q"), k=3, where=where)
    assert [[hit.uri for hit in answer.hits] for answer in hits] == [
        [hit["uri"] for hit in answer["hits"]] for answer in result["answers"]
    ]
    table = library.open(bench.table.uri).filter(where=where)
    assert sorted(table.to_arrow(["uri"])["uri"].to_pylist()) == sorted(allowed_by_duckdb(bench, where))
    both = table.filter(label="label 1").filter(where="price > 5")
    assert len(both) == len(allowed_by_duckdb(bench, f"{where} and label = 'label 1' and price > 5"))
    nothing = tlray(*arguments, "price > 1e9")
    assert result_of(nothing)["filtered_rows"] == 0 and "price > 1e9" in nothing.stderr
    for wrong, said in (
        ("prise < 1", "did you mean price"),
        ("price <", "at character"),
        ("price = 'x'", "cannot be compared"),
    ):
        assert said in error_of(tlray(*arguments, wrong))
        with pytest.raises(WhereError, match=said):
            index.search(vector=vectors_for([1], "q"), where=wrong)
        with pytest.raises(WhereError, match=said):
            library.open(bench.table.uri).filter(where=wrong)
