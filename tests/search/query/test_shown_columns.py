"""Columns that are shown with hits: the values that DuckDB reads from the table, by the command, in Python and in files."""

import json
import math
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

import tlray as library
from tests.factories import add_columns
from tests.photos import error_of, result_of, tlray
from tests.search.tables import Bench, rows_for, vectors_for
from tlray.columns.column import Column
from tlray.errors import QueryError
from tlray.lake.table.table import Table
from tlray.search.rows import row_columns

COLUMNS = [
    Column(name="price", type="number"),
    Column(name="site", type="text"),
    Column(name="id", type="integer"),  # which is a name of the index's own rows, too
    Column(name="tags", type="text[]"),
    Column(name="day", type="date"),
    Column(name="seen", type="timestamp"),
    Column(name="days", type="date[]"),
    Column(name="sold", type="boolean"),
]
NAMES = [column.name for column in COLUMNS]
LARGE = 2**62 + 1
"""More than a double, and so JavaScript, holds exactly."""
ODD = 12921
"""A year that Python has no date for; Parquet has."""


def values_of(number: int) -> dict[str, Any]:
    if number % 7 == 0:
        return dict.fromkeys(NAMES)
    return {
        "price": number / 8,
        "site": "Zürich" if number % 2 else "O'Brien",
        "id": LARGE + number,
        "tags": ["a", "b"] if number % 3 else [],
        "day": date(2026, 1, 1 + number % 28),
        "seen": datetime(2026, 1, 31, 12, number % 60, 0, number, UTC),
        "days": [date(2026, 1, 1), None],
        "sold": number % 2 == 0,
    }


def with_values(numbers: range, names: list[str]) -> pa.Table:
    rows, values = rows_for(numbers), [values_of(number) for number in numbers]
    for column in COLUMNS:
        if column.name in names:
            rows = rows.append_column(column.field, pa.array([each[column.name] for each in values], column.field.type))
    return rows


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """600 rows; the last hundred are in a part that has no column but the price. Columns are in many groups of rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_columns, "ROW_GROUP_ROWS", 64)
        bench = Bench(tmp_path_factory.mktemp("shown"))
        add_columns(bench.table, COLUMNS)
        bench.commit([with_values(range(at, at + 100), NAMES) for at in range(0, 500, 100)])
        bench.commit([with_values(range(500, 600), ["price"])])
        bench.index(factory="Flat")
    return bench


def by_duckdb(bench: Bench) -> dict[str, dict[str, Any]]:
    files = [f"{bench.table.uri.removeprefix('file://')}/{part.path}" for part in Table.open(bench.table.uri).parts()]
    names = ", ".join(f'"{name}"' for name in NAMES).replace('"seen"', "seen at time zone 'UTC'")
    rows = duckdb.sql(f"select uri, {names} from read_parquet({files!r}, union_by_name=true)").fetchall()
    found = {uri: dict(zip(NAMES, values, strict=True)) for uri, *values in rows}
    for values in found.values():
        values["seen"] = values["seen"] and values["seen"].replace(tzinfo=UTC)
    return found


def as_json(value: Any) -> Any:
    """By the library's own JSON, which knows no dates but by what is told here."""
    return json.loads(json.dumps(value, default=lambda day: day.isoformat()))


@pytest.mark.parametrize("where", ["", "price < 20", "site = 'Zürich' and day >= '2026-01-15'"])
def test_hits_have_the_values_of_the_table(bench: Bench, tmp_path: Path, where: str) -> None:
    expected, queries_BD = by_duckdb(bench), vectors_for(range(3), "q")
    answers = library.Index(bench.index_path).search(vector=queries_BD, k=50, where=where, columns="all")
    hits = [hit for answer in answers for hit in answer.hits]
    assert len(hits) == 150 and [hit.columns for hit in hits] == [expected[hit.uri] for hit in hits]
    assert where or any(hit.columns == dict.fromkeys(NAMES) for hit in hits if hit.columns)
    np.save(tmp_path / "q.npy", queries_BD)
    given = ["search", bench.index_path, "--vector", tmp_path / "q.npy", "-k", "50", *(["--where", where] if where else [])]
    result = result_of(tlray(*given, "--columns", "site", "DAY", "tags", "seen", "id", "days", "site"))
    found = [hit for answer in result["answers"] for hit in answer["hits"]]
    assert [hit["uri"] for hit in found] == [hit.uri for hit in hits]
    for hit in found:
        assert list(hit["columns"]) == ["site", "day", "tags", "seen", "id", "days"]
        assert hit["columns"] == as_json({name: expected[hit["uri"]][name] for name in hit["columns"]})
    assert answers.to_dict()["answers"][0]["hits"][0]["columns"] == as_json(expected[hits[0].uri])
    frame = answers.to_pandas()
    assert list(frame.columns) == ["query", "rank", "uri", "label", "score", *NAMES]
    sites = [site if isinstance(site, str) else None for site in frame["site"]]
    assert sites == [expected[uri]["site"] for uri in frame["uri"]]


def test_a_file_of_answers_has_them_with_their_types(bench: Bench, tmp_path: Path) -> None:
    expected, out = by_duckdb(bench), tmp_path / "answers.parquet"
    given = ["search", bench.index_path, "--queries", bench.table.uri, "--out", out, "-k", "2", "--columns", "label", "all"]
    assert "no column all" in error_of(tlray(*given))
    result_of(tlray(*given[:-1], *NAMES, "etag"))
    frame = pl.read_parquet(out)
    assert len(frame) == 1200 and frame.columns == ["query", "rank", "uri", "label", "score", *NAMES, "etag"]
    assert frame.schema["day"] == pl.Date and frame.schema["tags"] == pl.List(pl.String)
    for row in frame.sample(100, seed=1).iter_rows(named=True):
        assert {name: row[name] for name in NAMES} == expected[row["uri"]] and row["etag"] == "1"


def test_none_asked_for_is_as_it_was(bench: Bench) -> None:
    uri = rows_for(range(1))["uri"][0].as_py()
    (answer,) = result_of(tlray("search", bench.index_path, "--uri", uri, "-k", "2"))["answers"]
    assert [set(hit) for hit in answer["hits"]] == [{"uri", "label", "score", "id"}] * 2
    index = library.Index(bench.index_path)
    hits = index.search(uri=uri)[0].hits
    assert {hit.columns for hit in hits} == {None} and len(set(hits)) == 10


def test_what_is_not_there_is_refused_with_what_there_is(bench: Bench) -> None:
    index, uri = library.Index(bench.index_path), rows_for(range(1))["uri"][0].as_py()
    said = r"the index has no column prise; did you mean price\? it has uri \(text\), .* price \(number\), .*days \(date\[\]\)"
    with pytest.raises(QueryError, match=said):
        index.search(uri=uri, columns=["site", "prise"])
    assert "did you mean price" in error_of(tlray("search", bench.index_path, "--uri", uri, "--columns", "prise"))
    with pytest.raises(QueryError, match="no column part"):  # one of the index's own
        index.search(uri=uri, columns="part")


def test_names_that_answers_have_themselves_are_refused_in_files_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    add_columns(bench.table, [Column(name="Score", type="integer")])
    bench.commit([rows_for(range(20)).append_column("Score", pa.array(range(20)))])
    bench.index()
    uri = rows_for(range(1))["uri"][0].as_py()
    answers = library.Index(bench.index_path).search(uri=uri, k=3, columns=["score"])
    assert [hit.columns for hit in answers[0].hits] == [{"Score": int(hit.uri[-10:-4])} for hit in answers[0].hits]
    with pytest.raises(QueryError, match="a column Score of its own"):
        answers.to_pandas()
    refused = tlray("search", bench.index_path, "--uri", uri, "--columns", "Score", "--out", tmp_path / "a.parquet")
    assert "a column Score of its own" in error_of(refused) and not (tmp_path / "a.parquet").exists()


def test_no_column_and_values_that_python_or_json_lack(tmp_path: Path) -> None:
    bench, uri = Bench(tmp_path), rows_for(range(1))["uri"][0].as_py()
    bench.commit([rows_for(range(20))])
    bench.index()
    index = library.Index(bench.index_path)
    assert {str(hit.columns) for hit in index.search(uri=uri, columns="all")[0].hits} == {"{}"}
    columns = [Column(name="n", type="number"), Column(name="d", type="date"), Column(name="ds", type="date[]")]
    add_columns(bench.table, columns)
    rows, late = rows_for(range(100, 120)), pa.array([(ODD - 1970) * 365 + 2656 + 100] * 20, pa.int32()).cast(pa.date32())
    rows = rows.append_column("n", pa.array([math.inf, -math.inf] * 10)).append_column("d", late)
    bench.commit([rows.append_column("ds", pa.array([[day] for day in late], pa.list_(pa.date32())))])
    bench.index()
    given = ["search", bench.index_path, "--uri", rows["uri"][0].as_py(), "-k", "25", "--columns", "all"]
    done = tlray(*given)
    hits = json.loads(done.stdout, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))["answers"][0]["hits"]
    (dated,) = {hit["columns"]["d"] for hit in hits if hit["columns"]["d"]}
    assert dated.startswith(str(ODD)) and {str(hit["columns"]["ds"]) for hit in hits} == {f"['{dated}']", "None"}
    assert {hit["columns"]["n"] for hit in hits} == {"inf", "-inf", None}
