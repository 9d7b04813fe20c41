"""Columns that travel: all types through all sources, changed values without embedding, and what is refused."""

import csv
import io
import json
import tarfile
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

import tlray as library
from tests.photos import RECIPE, error_of, frame_of, photo, result_of, tlray, write_photos

COUNT = 6
ROWS = [
    {
        "site": ["A", "Zürich", None, "O'Brien", "日本", 'the "best"'][at],
        "price": [9.99, None, 10.0, -1.5, 0.0, 1e300][at],
        "count": [1, 2, None, 2**40, -5, 0][at],
        "is_public": [True, False, None, True, False, True][at],
        "day": [None if at == 4 else date(2026, 1, 28 + at // 2)][0],
        "captured_at": [None if at == 5 else datetime(2026, 1, 31, at, 30, 15, 250_000, tzinfo=UTC)][0],
        "tags": [["cat"], [], None, ["a", "b"], ["Zürich"], ["x"]][at],
        "sizes": [[1, 2], [3], None, [], [0], [2**40]][at],
    }
    for at in range(COUNT)
]
NAMES = list(ROWS[0])
POLARS = {
    "site": pl.String,
    "price": pl.Float64,
    "count": pl.Int64,
    "is_public": pl.Boolean,
    "day": pl.Date,
    "captured_at": pl.Datetime("us", "UTC"),
    "tags": pl.List(pl.String),
    "sizes": pl.List(pl.Int64),
}
ARROW = pa.schema(
    {
        "site": pa.string(),
        "price": pa.float64(),
        "count": pa.int64(),
        "is_public": pa.bool_(),
        "day": pa.date32(),
        "captured_at": pa.timestamp("ns"),
        "tags": pa.list_(pa.string()),
        "sizes": pa.list_(pa.int64()),
    }
)
TEXTS = ["site", "price", "count", "is_public", "day", "captured_at", "tags::text[]", "sizes::integer[]"]
"""Of CSV: only lists have to be declared."""
JSON = ["site", "price", "count::integer", "is_public", "day::date", "captured_at::timestamp", "tags", "sizes::integer[]"]
"""Of JSON: it has no dates, and in tar files not all is looked at before."""


def extract(source: Path, table: Path, columns: list[str], *more: str) -> dict:
    return result_of(tlray(*command(source, table, columns), *more))


def command(source: Path, table: Path, columns: list[str]) -> list[str | Path]:
    asked = ["--source.columns", *columns] if columns else []
    return ["extract", "--local", "--source.uri", source, "--table", table, *RECIPE, *asked]


def text_of(value: object) -> str:
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, list) else str(value).lower() if isinstance(value, bool) else str(value)


def json_of(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value.isoformat() if isinstance(value, date) else value for name, value in row.items()}


def write_source(kind: str, folder: Path, rows: list[dict[str, Any]] = ROWS) -> tuple[Path, list[str]]:
    """The source of a kind; its columns as they are asked for."""
    paths = sorted(folder.glob("photos/*/*.jpg"), key=lambda path: path.name) or write_photos(folder / "photos", len(rows))
    names = [str(path.relative_to(folder / "photos")) for path in paths]
    arrow = pa.Table.from_pylist(rows, ARROW)
    if kind in ("manifest.csv", "metadata.csv"):
        place = folder / ("photos/metadata.csv" if kind == "metadata.csv" else "manifest.csv")
        first = names if kind == "metadata.csv" else [f"photos/{name}" for name in names]
        with place.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", *NAMES])
            writer.writerows([[name, *map(text_of, row.values())] for name, row in zip(first, rows, strict=True)])
        return (folder / "photos" if kind == "metadata.csv" else place), TEXTS
    if kind == "metadata.jsonl":
        lines = [json.dumps({"file_name": name} | json_of(row)) for name, row in zip(names, rows, strict=True)]
        (folder / "photos/metadata.jsonl").write_text("\n".join(lines))
        return folder / "photos", JSON
    if kind == "manifest.parquet":
        pq.write_table(arrow.add_column(0, "path", pa.array([f"photos/{name}" for name in names])), folder / "manifest.parquet")
        return folder / "manifest.parquet", NAMES
    if kind == "parquet":
        (folder / "parquet").mkdir()
        images = pa.array([{"bytes": path.read_bytes(), "path": path.name} for path in paths])
        pq.write_table(arrow.add_column(0, "image", images), folder / "parquet/0.parquet", row_group_size=4)
        return folder / "parquet", ["all"]
    (folder / "tars").mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"tars/{shard}.tar", "w") as tar:
            for path, row in list(zip(paths, rows, strict=True))[shard * 3 : shard * 3 + 3]:
                for name, data in ((path.name, path.read_bytes()), (f"{path.stem}.json", json.dumps(json_of(row)).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder / "tars", JSON


KINDS = ["manifest.csv", "manifest.parquet", "metadata.csv", "metadata.jsonl", "parquet", "tars"]


def values_in(table: Path) -> list[dict[str, Any]]:
    """By the number of the image, whatever its URI is."""
    rows = frame_of(table).sort("uri").select(NAMES).to_dicts()
    by_name = sorted(zip(frame_of(table)["uri"].str.split("/").list.last(), rows, strict=True), key=lambda pair: pair[0])
    return [row for _, row in by_name]


@pytest.mark.parametrize("kind", KINDS)
def test_all_types_come_through(tmp_path: Path, kind: str) -> None:
    source, columns = write_source(kind, tmp_path)
    result = extract(source, tmp_path / "t", columns)
    assert (result["ok"], result["rewritten"], result["unfit"]) == (COUNT, 0, {})
    frame = frame_of(tmp_path / "t")
    assert {name: frame.schema[name] for name in NAMES} == POLARS
    assert sorted(values_in(tmp_path / "t"), key=str) == sorted(ROWS, key=str)
    if kind not in ("parquet", "tars"):
        assert values_in(tmp_path / "t") == ROWS
    assert result_of(tlray("verify", tmp_path / "t"))["ok"] == COUNT
    again = extract(source, tmp_path / "t", columns)
    assert (again["unchanged"], again["rewritten"]) == (again["listed"], 0)
    assert again["version"] == result["version"]
    for where in (
        "price < 10 and site = 'A'",
        "list_contains(tags, 'b')",
        "captured_at >= '2026-01-31T03:00:00Z'",
        "count is null",
    ):
        files = DeltaTable(tmp_path / "t").file_uris()
        connection = duckdb.connect()
        connection.execute("set TimeZone = 'UTC'")
        expected = connection.execute(f"select uri from read_parquet({files!r}) where {where} order by uri").fetchall()
        found = library.open(tmp_path / "t").filter(where=where).to_arrow(["uri"])["uri"].to_pylist()
        assert sorted(found) == [uri for (uri,) in expected] and found, where


def test_a_changed_value_rewrites_its_row_alone_and_embeds_nothing(tmp_path: Path, encoded: list[int]) -> None:
    source, columns = write_source("manifest.csv", tmp_path)
    first = extract(source, tmp_path / "t", columns)
    assert sum(encoded) == COUNT
    before = frame_of(tmp_path / "t")
    encoded.clear()
    rows = [dict(row) for row in ROWS]
    rows[1] |= {"price": 12.5, "tags": ["new", "ones"]}
    rows[3] |= {"site": None}
    write_source("manifest.csv", tmp_path, rows)
    second = extract(source, tmp_path / "t", columns)
    assert encoded == [] and (second["rewritten"], second["unchanged"], second["ok"]) == (2, COUNT - 2, 0)
    assert second["version"] == first["version"] + 1
    assert values_in(tmp_path / "t") == rows
    after = frame_of(tmp_path / "t")
    assert after.drop(NAMES).equals(before.drop(NAMES))
    assert result_of(tlray("verify", tmp_path / "t"))["ok"] == COUNT
    # Back in time there are the values of then.
    assert pl.scan_delta(str(tmp_path / "t"), version=first["version"]).collect().sort("uri").equals(before)
    kept = extract(source, tmp_path / "t", columns, "--policy.changed", "keep")
    assert kept["rewritten"] == 0


def test_a_replaced_image_a_deleted_one_and_other_values_in_one_run(tmp_path: Path, encoded: list[int]) -> None:
    source, columns = write_source("metadata.jsonl", tmp_path)
    extract(source, tmp_path / "t", columns)
    encoded.clear()
    paths = sorted((tmp_path / "photos").glob("*/*.jpg"), key=lambda path: path.name)
    rows = [row | {"count": 100 + at} for at, row in enumerate(ROWS)]
    write_source("metadata.jsonl", tmp_path, rows)
    paths[0].write_bytes(photo(500, (50, 40)))
    paths[5].unlink()
    result = extract(source, tmp_path / "t", columns)
    assert result["deleted"] == 1 and result["changed"] + result["rewritten"] == 5
    assert sum(encoded) == result["changed"]
    assert values_in(tmp_path / "t") == rows[:5]
    assert "1 rows of" in tlray(*command(source, tmp_path / "t2", columns)).stderr  # that name no image


def test_a_column_that_comes_later_is_null_before_for_every_engine(tmp_path: Path, encoded: list[int]) -> None:
    paths = write_photos(tmp_path / "photos", 8)
    first = extract(tmp_path / "photos", tmp_path / "t", [])
    assert "rewritten" not in first and "columns" not in first
    manifest = tmp_path / "photos.csv"
    paths += write_photos(tmp_path / "photos", 2, first=100)  # alone, so that the others stay in a part of before
    manifest.write_text("path,site\n" + "".join(f"{path},S\n" for path in paths[8:]))
    extract(manifest, tmp_path / "t", ["site"], "--policy.deleted", "keep")
    expected: dict[str, str | None] = {f"file://{path}": "S" if at > 7 else None for at, path in enumerate(paths)}
    files = DeltaTable(tmp_path / "t").file_uris()
    assert len(files) == 2
    assert dict(frame_of(tmp_path / "t").select("uri", "site").iter_rows()) == expected
    assert dict(duckdb.sql(f"select uri, site from read_parquet({files!r}, union_by_name=true)").fetchall()) == expected
    arrow = library.open(tmp_path / "t").to_arrow(["uri", "site"])
    assert dict(zip(*(arrow[name].to_pylist() for name in ("uri", "site")), strict=True)) == expected
    assert library.open(tmp_path / "t").filter(where="site is null").to_arrow(["uri"]).num_rows == 8
    assert result_of(tlray("show", tmp_path / "t"))["carried"] == {"site": "text"}
    with pytest.raises(Exception, match="site"):
        pl.scan_delta(str(tmp_path / "t"), version=first["version"]).select("site").collect()
    joined = result_of(tlray("optimize", tmp_path / "t"))
    assert joined["parts"] == 1
    assert dict(frame_of(tmp_path / "t").select("uri", "site").iter_rows()) == expected
    encoded.clear()
    manifest.write_text(manifest.read_text() + f"{paths[1]},other\n")
    again = extract(manifest, tmp_path / "t", ["site"], "--policy.deleted", "keep")
    assert encoded == [] and (again["rewritten"], again["unchanged"]) == (1, 2)
    expected[f"file://{paths[1]}"] = "other"
    assert dict(frame_of(tmp_path / "t").select("uri", "site").iter_rows()) == expected
    # A run that says nothing of columns keeps what is there, for a replaced image, too.
    paths[1].write_bytes(photo(99))
    later = extract(tmp_path / "photos", tmp_path / "t", [])
    assert later["changed"] == 1
    assert dict(frame_of(tmp_path / "t").select("uri", "site").iter_rows()) == expected


def test_a_table_without_columns_is_the_same_as_ever(tmp_path: Path) -> None:
    write_photos(tmp_path / "plain", 5)
    extract(tmp_path / "plain", tmp_path / "t", [])
    delta = DeltaTable(tmp_path / "t")
    assert [field.name for field in delta.schema().fields] == [
        *("uri", "etag", "label", "width", "height", "embedding", "error", "status")
    ]
    assert delta.version() == 1
    assert "carried" not in result_of(tlray("show", tmp_path / "t"))
    source, columns = write_source("metadata.csv", tmp_path)
    with_columns = extract(source, tmp_path / "t2", columns)
    assert with_columns["recipe_id"] == result_of(tlray("show", tmp_path / "t"))["recipe_id"]


def test_names_that_listings_and_plans_have_too(tmp_path: Path, encoded: list[int]) -> None:
    names = ["text", "fault", "row", "part", "item", "retry", "key", "id"]
    paths = write_photos(tmp_path / "photos", 2)

    def write(*last: str) -> None:
        lines = [",".join([str(path), *names[1:], value]) + "\n" for path, value in zip(paths, last, strict=True)]
        (tmp_path / "m.csv").write_text(f"path,{','.join(names)}\n" + "".join(lines))

    write("a", "b")
    extract(tmp_path / "m.csv", tmp_path / "t", names)
    encoded.clear()
    write("a", "c")
    assert extract(tmp_path / "m.csv", tmp_path / "t", names)["rewritten"] == 1 and encoded == []
    assert frame_of(tmp_path / "t").sort(pl.col("uri").str.slice(-9)).select(names).rows() == [
        (*names[1:], "a"),
        (*names[1:], "c"),
    ]
    assert "cannot travel" in error_of(tlray(*command(tmp_path / "m.csv", tmp_path / "t", ["size_bytes"])))


@pytest.mark.parametrize(
    ("cells", "columns", "said"),
    [
        (["1", "2"], ["prise"], "has no prise; it has price"),
        (["1", "2"], ["etag"], "cannot travel into a table"),
        (["1", "2"], ["Embedding"], "cannot travel into a table"),
        (["1", "x"], ["price::number"], "row 2 (the header not counted): price is 'x', expected number"),
        (["1", "2.5"], ["price::integer"], "price is '2.5', expected integer"),
        (["1", "2"], ["price::money"], "has the type 'money'"),
        (["1", "2"], ["all", "price"], "all stands alone"),
    ],
)
def test_what_cannot_travel_is_refused(tmp_path: Path, cells: list[str], columns: list[str], said: str) -> None:
    paths = write_photos(tmp_path / "photos", 2)
    lines = [f"{path},{cell}\n" for path, cell in zip(paths, cells, strict=True)]
    (tmp_path / "m.csv").write_text("path,price\n" + "".join(lines))
    assert said in error_of(tlray(*command(tmp_path / "m.csv", tmp_path / "t", columns)))
    assert not (tmp_path / "t").exists()


def test_another_type_than_the_tables_is_refused(tmp_path: Path, encoded: list[int]) -> None:
    paths = write_photos(tmp_path / "photos", 3)

    def write(*cells: str) -> Path:
        lines = [f"{path},{cell}\n" for path, cell in zip(paths, cells, strict=True)]
        (tmp_path / "m.csv").write_text("path,price\n" + "".join(lines))
        return tmp_path / "m.csv"

    extract(write("1", "2", ""), tmp_path / "t", ["price"])
    encoded.clear()
    version = DeltaTable(tmp_path / "t").version()
    for cells, columns, said in (
        (("1", "2", "cheap"), ["price"], "price is 'cheap', expected integer"),
        (("1", "2", "3.5"), ["price"], "price is '3.5', expected integer"),
        (("1", "2", "3"), ["price::text"], "price is of type integer in the table, given text"),
        (("1", "2", "3"), ["Price"], "has no Price"),
    ):
        assert said in error_of(tlray(*command(write(*cells), tmp_path / "t", columns)))
    pq.write_table(pa.table({"path": [str(path) for path in paths], "price": ["a", "b", "c"]}), tmp_path / "m.parquet")
    said = error_of(tlray(*command(tmp_path / "m.parquet", tmp_path / "t", ["price"])))
    assert "price is of type integer in the table, but of type text in" in said
    assert encoded == [] and DeltaTable(tmp_path / "t").version() == version
    pq.write_table(pa.table({"path": [str(path) for path in paths], "price": [1.0, 7.0, float("nan")]}), tmp_path / "m.parquet")
    assert extract(tmp_path / "m.parquet", tmp_path / "t", ["price"])["rewritten"] == 1
    assert frame_of(tmp_path / "t").sort(pl.col("uri").str.slice(-9))["price"].to_list() == [1, 7, None]


def test_all_takes_what_can_travel_and_says_what_cannot(tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos", 2)
    table = pa.table(
        {
            "path": [str(path) for path in paths],
            "site": ["A", "B"],
            "label": ["x", "y"],
            "a b": [1, 2],
            "box": [{"x": 1}, {"x": 2}],
            "nothing": pa.nulls(2),
            "Site": ["a", "b"],
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    outcome = tlray(*command(tmp_path / "m.parquet", tmp_path / "t", ["all"]))
    assert result_of(outcome)["columns"] == {"site": "text"}
    for said in ("'label' of", "'a b' of", "box of", "nothing of", "'Site' of"):
        assert said in outcome.stderr
    assert "type that does not travel" in error_of(tlray(*command(tmp_path / "m.parquet", tmp_path / "t2", ["box"])))


def test_values_of_json_that_do_not_fit_are_null_and_counted(tmp_path: Path) -> None:
    rows: list[Any] = [{"price": 1}, {"price": "cheap"}, {"price": None}, {"price": 2.5}, {}, {"price": [1]}]
    paths = write_photos(tmp_path / "photos", 7)
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars/0.tar", "w") as tar:
        for at, path in enumerate(paths):
            data = json.dumps(rows[at]).encode() if at < 6 else b"{broken"
            for name, content in ((path.name, path.read_bytes()), (f"{path.stem}.json", data)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    outcome = tlray(*command(tmp_path / "tars", tmp_path / "t", ["price::number"]))
    assert result_of(outcome)["unfit"] == {"price": 3} and "price is 'cheap', expected number" in outcome.stderr
    assert frame_of(tmp_path / "t")["price"].to_list() == [1.0, None, None, 2.5, None, None, None]
    mixed = error_of(tlray(*command(tmp_path / "tars", tmp_path / "t2", ["price"])))
    assert "type that does not travel" in mixed and "declare a type" in mixed
    assert "has no site; it has price" in error_of(tlray(*command(tmp_path / "tars", tmp_path / "t2", ["site"])))


def test_lines_of_metadata_end_with_line_feeds_alone_and_are_utf_8(tmp_path: Path) -> None:
    """JSON may hold the other line separators of Unicode as they are, which `str.splitlines` takes for ends of lines."""
    paths = write_photos(tmp_path / "photos", 3)
    sites = ["A\u2028B", "C\u0085D", "größe"]
    lines = [
        json.dumps({"file_name": str(path.relative_to(tmp_path / "photos")), "site": site}, ensure_ascii=False)
        for path, site in zip(paths, sites, strict=True)
    ]
    metadata = tmp_path / "photos/metadata.jsonl"
    metadata.write_bytes("\r\n\n".join(lines).encode("utf-8-sig"))
    extract(tmp_path / "photos", tmp_path / "t", ["site"])
    assert sorted(frame_of(tmp_path / "t")["site"]) == sorted(sites)
    metadata.write_bytes("\n".join(lines[::-1]).encode("latin-1", "xmlcharrefreplace"))
    said = error_of(tlray(*command(tmp_path / "photos", tmp_path / "t2", ["site"])))
    assert "metadata.jsonl, line 1 (blank ones not counted) is no JSON object in UTF-8" in said


@pytest.mark.parametrize("kind", ["tars", "parquet"])
def test_a_column_that_comes_later_is_said_to_be_null_in_files_that_are_not_read_again(
    tmp_path: Path, kind: str, encoded: list[int]
) -> None:
    source, _ = write_source(kind, tmp_path)
    files = sum(path.suffix in (".tar", ".parquet") for path in source.iterdir())
    first = extract(source, tmp_path / "t", ["price::number"])
    assert first["unfilled"] == {}
    encoded.clear()
    later = tlray(*command(source, tmp_path / "t", ["price", "site"]))
    assert result_of(later)["unfilled"] == {"site": files} and encoded == []
    assert "site: null for images of files that the table has and that have not changed" in later.stderr
    assert "price: null" not in later.stderr
    for path in source.iterdir():
        path.touch()
    assert extract(source, tmp_path / "t", ["price", "site"])["unfilled"] == {"site": 0}
    assert extract(source, tmp_path / "t", ["price", "site"])["unfilled"] == {}
    assert frame_of(tmp_path / "t")["site"].null_count() == sum(row["site"] is None for row in ROWS)


def test_nested_fields_of_json(tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos", 2)
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars/0.tar", "w") as tar:
        for at, path in enumerate(paths):
            for name, data in (
                (path.name, path.read_bytes()),
                (f"{path.stem}.json", json.dumps({"meta": {"camera": f"c{at}"}}).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    extract(tmp_path / "tars", tmp_path / "t", ["meta.camera"])
    assert frame_of(tmp_path / "t")["meta.camera"].to_list() == ["c0", "c1"]
    assert len(library.open(tmp_path / "t").filter(where="meta.camera = 'c1'")) == 1
