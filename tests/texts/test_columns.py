"""Columns that travel beside texts: all types from every format, changed values without embedding, and what is refused."""

import csv
import io
import json
import tarfile
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

import tlray as library
from tests.extraction.test_travelling_columns import ARROW, JSON, NAMES, POLARS, ROWS, TEXTS, json_of, text_of
from tests.photos import error_of, frame_of, result_of, tlray
from tests.texts.documents import documents
from tlray.columns.column import Column
from tlray.config import SourceConfig
from tlray.errors import SourceError
from tlray.lake.source.columns import Settled, with_columns
from tlray.lake.source.open import open_source
from tlray.lake.source.read_images import read_images
from tlray.lake.source.read_spec import ReadSpec

REVIEWS = [text for _, text, _ in documents()[: len(ROWS)]]


def write(path: Path, rows: list[dict[str, Any]] = ROWS, reviews: list[str] = REVIEWS) -> list[str]:
    """A file of reviews with rows of columns; how the columns are asked for."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows, ARROW).append_column("review", pa.array(reviews)), path, row_group_size=4)
        return NAMES
    if path.suffix == ".jsonl":
        lines = [json.dumps({"review": text} | json_of(row)) for text, row in zip(reviews, rows, strict=True)]
        path.write_text("\n".join(lines))
        return JSON
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerow([*NAMES, "review"])
        writer.writerows([[*map(text_of, row.values()), text] for text, row in zip(reviews, rows, strict=True)])
    return TEXTS


def command(source: Path, folder: Path, table: Path, columns: list[str], text: str = "review") -> list[str | Path]:
    source_of = ["--source.uri", source, "--source.text", text, "--source.columns", *columns]
    return ["extract", "--local", *source_of, "--table", table, "--recipe.backbone", f"gensim:{folder / 'w.bin'}"]


def values_in(table: Path, names: list[str] = NAMES) -> list[dict[str, Any]]:
    return frame_of(table).sort("uri").select(names).to_dicts()


def test_all_types_in_the_table(folder: Path, tmp_path: Path) -> None:
    columns = write(tmp_path / "x.jsonl")
    arguments = command(tmp_path / "x.jsonl", folder, tmp_path / "t", columns)
    first = result_of(tlray(*arguments))
    frame = frame_of(tmp_path / "t").sort("uri")
    assert {name: frame.schema[name] for name in NAMES} == POLARS
    assert values_in(tmp_path / "t") == ROWS and frame["text"].to_list() == REVIEWS
    assert result_of(tlray("verify", tmp_path / "t"))["ok"] == len(ROWS)
    again = result_of(tlray(*arguments))
    assert (again["unchanged"], again["rewritten"], again["version"]) == (len(ROWS), 0, first["version"])
    files = DeltaTable(tmp_path / "t").file_uris()
    for where in ("price < 10 and site = 'A'", "list_contains(tags, 'b')", "day >= '2026-01-29'", "count is null"):
        expected = duckdb.sql(f"select uri from read_parquet({files!r}) where {where}").fetchall()
        found = library.open(tmp_path / "t").filter(where=where).to_arrow(["uri"])["uri"].to_pylist()
        assert found and sorted(found) == sorted(uri for (uri,) in expected), where


def test_other_values_rewrite_rows_and_embed_nothing(folder: Path, tmp_path: Path, encoded: list[int]) -> None:
    source = tmp_path / "x.csv"
    arguments = command(source, folder, tmp_path / "t", write(source))
    result_of(tlray(*arguments))
    assert sum(encoded) == len(ROWS)
    before = frame_of(tmp_path / "t").sort("uri")
    encoded.clear()
    rows = [dict(row) for row in ROWS]
    rows[1] |= {"price": 12.5, "tags": ["new", "ones"]}
    rows[3] |= {"site": None}
    write(source, rows)
    second = result_of(tlray(*arguments))
    assert encoded == [] and (second["rewritten"], second["unchanged"]) == (2, len(ROWS) - 2)
    after = frame_of(tmp_path / "t").sort("uri")
    assert values_in(tmp_path / "t") == rows and after.drop(NAMES).equals(before.drop(NAMES))
    # Another text is embedded, and brings the values that it has now; a run without columns keeps them.
    rows[0] |= {"count": 77}
    write(source, rows, ["the graph of a tree", *REVIEWS[1:]])
    third = result_of(tlray(*arguments))
    assert sum(encoded) == 1 and (third["changed"], third["rewritten"]) == (1, 0)
    write(source, ROWS, ["a tree of graphs", *REVIEWS[1:]])
    plain = [
        each for each in arguments if each not in ("--source.columns", *arguments[arguments.index("--source.columns") : -4])
    ]
    assert result_of(tlray(*plain))["changed"] == 1
    assert values_in(tmp_path / "t") == rows and frame_of(tmp_path / "t")["text"].to_list().count("a tree of graphs") == 1


def read(path: Path, columns: list[str], **config: str) -> tuple[list[dict[str, Any]], Settled]:
    """The rows of a source as a worker has them, and its columns as they were settled."""
    asked = SourceConfig(uri=str(path), columns=tuple(columns), **{"text": "review", **config})
    settled = with_columns(open_source(asked), [])
    source = settled.source
    spec = ReadSpec.of(source, None, columns=source.columns)
    return [row for page in source.pages() for batch in read_images(page, spec) for row in batch.rows.to_pylist()], settled


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "ndjson"])
def test_the_same_of_every_format(tmp_path: Path, suffix: str) -> None:
    columns = write(tmp_path / ("x.jsonl" if suffix == "ndjson" else f"x.{suffix}"))
    if suffix == "ndjson":
        (tmp_path / "x.jsonl").rename(tmp_path / "x.ndjson")
    rows, _ = read(tmp_path / f"x.{suffix}", columns)
    assert [{name: row[name] for name in NAMES} for row in rows] == ROWS


def test_failed_rows_have_values_too(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(
        '{"review": "a graph", "n": 1}\n\n{broken\n{"review": " ", "n": 3}\n{"n": 4}\n{"review": "a system"}\n'
    )
    rows, settled = read(tmp_path / "x.jsonl", ["n"])
    assert str(settled.source.columns[0]) == "n (integer)"
    assert [(row["n"], row["error"]) for row in rows] == [
        *((1, None), (None, "corrupt"), (3, "empty"), (4, "empty"), (None, None))
    ]


def test_types_are_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "0.csv").write_text("review,n,code,day\nthe graph,1,1,2026-01-01\na tree,,2,\n")
    (tmp_path / "1.csv").write_text("review,n,code\nthe system,2.5,007\n")
    (tmp_path / "2.jsonl").write_text('{"review": "a user", "n": 3, "code": "x", "day": null, "more": [1]}\n')
    rows, settled = read(tmp_path, ["all"])
    types = {"n": "number", "code": "text", "day": "date", "more": "integer[]"}
    assert {column.name: column.type for column in settled.source.columns} == types
    lacking = {"day": 1, "more": 2}
    assert settled.notes == tuple(
        f"{count} files of file://{tmp_path} have no column {name}: null in their rows" for name, count in lacking.items()
    )
    assert [row["n"] for row in rows] == [1, None, 2.5, 3] and [row["code"] for row in rows] == ["1", "2", "007", "x"]
    assert [row["more"] for row in rows] == [None, None, None, [1]]
    assert [row["day"] for row in rows] == [date(2026, 1, 1), None, None, None]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_columns_of_a_file_in_another_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x.csv").write_text("review,site\nthe graph of trees,Zürich\n", encoding=encoding)
    rows, _ = read(tmp_path / "x.csv", ["site"], encoding=encoding if encoding == "latin-1" else "utf-8")
    assert [row["site"] for row in rows] == ["Zürich"]


def test_text_files_and_members_of_tars(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number, text in enumerate(REVIEWS):
            (tmp_path / f"files/{number}.txt").write_text(text)
            for name, data in ((f"{number}.txt", text.encode()), (f"{number}.json", json.dumps({"stars": number}).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    lines = [f"{number}.txt,{number}\n" for number in range(len(REVIEWS))]
    (tmp_path / "files/metadata.csv").write_text("file_name,stars\n" + "".join(lines))
    for source in (tmp_path / "files", tmp_path / "x.tar"):
        rows, _ = read(source, ["stars"], text="txt")
        assert {row["uri"][-5:]: row["stars"] for row in rows} == {f"{number}.txt": number for number in range(len(REVIEWS))}


def test_searches_and_heads_take_conditions(folder: Path, tmp_path: Path) -> None:
    rows = [(text, topic, number) for number, (_, text, topic) in enumerate(documents())]
    frame = pl.DataFrame(rows, ["review", "topic", "number"], orient="row")
    frame.write_parquet(tmp_path / "x.parquet")
    arguments = command(tmp_path / "x.parquet", folder, tmp_path / "t", ["number"])
    result_of(tlray(*arguments, "--source.labels", "topic"))
    result_of(tlray("index", "--table", tmp_path / "t", "--out", tmp_path / "i"))
    hits = library.Index(tmp_path / "i").search(text="the graph of trees", k=len(rows), where="number < 40")
    assert {hit.uri.rpartition("#")[2] for hit in hits[0].hits} == {str(number) for number in range(40)}
    trained = result_of(tlray("train", "--table", tmp_path / "t", "--out", tmp_path / "m", "--where", "number >= 40"))
    assert trained["counts"]["images"] == frame.filter(pl.col("number") >= 40).height


@pytest.mark.parametrize(
    ("name", "data", "columns", "said"),
    [
        ("x.csv", "review,n\nthe graph,1\n", ["review"], "is the column of the texts"),
        ("x.csv", "review,text\nthe graph,1\n", ["text"], "cannot travel into a table"),
        ("x.csv", "review,n\nthe graph,1\na tree,x\n", ["n::number"], "row 2 (the header not counted): n is 'x'"),
        ("x.csv", "review,n,n\nthe graph,1,2\n", ["n"], "has 2 columns named 'n'"),
        ("x.jsonl", '{"review": "the graph", "n": 1}\n', ["m"], "has no m; it has n"),
        ("x.jsonl", '{"review": "a", "n": 1}\n\n{"review": "b", "n": "x"}\n', ["n"], "type that does not travel"),
        ("x.jsonl", '{"review": "a", "n": 1}\n\n{"review": "b", "n": "x"}\n', ["n::integer"], "line 2 (blank ones"),
    ],
)  # fmt: skip
def test_what_cannot_travel_is_refused(
    folder: Path, tmp_path: Path, name: str, data: str, columns: list[str], said: str
) -> None:
    (tmp_path / name).write_text(data)
    assert said in error_of(tlray(*command(tmp_path / name, folder, tmp_path / "t", columns)))
    assert not (tmp_path / "t").exists()


def test_another_type_than_the_tables_is_refused(tmp_path: Path) -> None:
    there = [Column(name="n", type="integer")]
    (tmp_path / "x.csv").write_text("review,n\nthe graph,1\na tree,many\n")
    pq.write_table(pa.table({"review": ["the graph"], "n": ["1"]}), tmp_path / "x.parquet")
    config = SourceConfig(uri=str(tmp_path / "x.csv"), text="review", columns=("n",))
    with pytest.raises(SourceError, match=r"row 2 .*n is 'many', expected integer"):
        list(with_columns(open_source(config), there).source.pages())
    with pytest.raises(SourceError, match="n is of type integer in the table, but of type text"):
        with_columns(open_source(config.model_copy(update={"uri": str(tmp_path / "x.parquet")})), there)
