"""The same labels out of every file format, against what pandas, Polars, DuckDB and Python write into them."""

import io
import json
from pathlib import PurePosixPath

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tlray.errors import SourceError
from tlray.lake.source.label_text import folder_labels, label_text, label_texts

COLUMNS = {
    "whole numbers": ([3, 0, -7, 12345678901], ["3", "0", "-7", "12345678901"]),
    "whole numbers of which one is missing": ([1.0, None, 2.0, -0.0], ["1", None, "2", "-0"]),
    "numbers": ([0.5, 1e-05, 1.5e-07, 1e16, 2.5], ["0.5", "1e-05", "1.5e-07", "1e+16", "2.5"]),
    "booleans": ([True, False, None], ["true", "false", None]),
    "texts": (
        ["007", "1.50", "NA", "None", "null", "1e5", "x\ny", " a"],
        ["007", "1.50", "NA", "None", "null", "1e5", "x\ny", " a"],
    ),
    "texts that say nothing": (["cat", "", None, "  "], ["cat", None, None, None]),
}


def csv_column(text: str) -> pa.ChunkedArray:
    convert = pyarrow.csv.ConvertOptions(column_types={"label": pa.string()}, strings_can_be_null=False)
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False)
    read = pyarrow.csv.read_csv(io.BytesIO(text.encode()), convert_options=convert, parse_options=parse)
    return read["label"]


@pytest.mark.parametrize("name", COLUMNS)
def test_a_label_does_not_depend_on_its_file(name: str) -> None:
    values, expected = COLUMNS[name]
    rows = {"id": range(len(values)), "label": values}
    frame = pd.DataFrame(rows)
    sink = io.BytesIO()
    frame.to_parquet(sink)
    found = {
        "pandas csv": csv_column(frame.to_csv()),
        "pandas parquet": pq.read_table(io.BytesIO(sink.getvalue()))["label"],
        "polars csv": csv_column(pl.DataFrame(rows).write_csv(float_scientific=None)),
        "arrow": pa.array(values),
        "arrow, encoded as a dictionary": pa.array(values).dictionary_encode(),
        "duckdb": duckdb.sql("select label from frame").to_arrow_table()["label"],
    }
    texts = {where: label_texts(column).to_pylist() for where, column in found.items()}
    if name == "numbers":  # Polars has a spelling of its own for what it does not write out
        del texts["polars csv"]
    assert texts == dict.fromkeys(texts, expected)
    parsed = json.loads(json.dumps(values))
    assert [label_text(value) for value in parsed] == expected


def test_nan_is_no_label_and_no_class() -> None:
    nan = float("nan")
    assert label_texts(pa.array([1.0, nan, None])).to_pylist() == ["1", None, None]
    assert label_texts(pa.array([1.5, nan], pa.float32())).to_pylist() == ["1.5", None]
    assert label_texts(pa.chunked_array([[nan], [], [2.0]])).to_pylist() == [None, "2"]
    assert label_texts(pa.array(["nan", "NaN", "<NA>", "Nan", "nana"])).to_pylist() == [None, None, None, "Nan", "nana"]
    assert label_texts(pa.nulls(2)).to_pylist() == [None, None]
    assert [label_text(value) for value in (nan, None, 10**30, json.loads("NaN"))] == [None, None, str(10**30), None]


def test_lists_and_bytes_are_refused() -> None:
    for column in (pa.array([["a"]]), pa.array([{"a": 1}])):
        with pytest.raises(SourceError, match=r"labels of type .* expected one label for each image"):
            label_texts(column)
    with pytest.raises(SourceError, match="labels of type binary cannot be read as text"):
        label_texts(pa.array([b"\xff"]))
    assert label_texts(pa.array([b"cat", None])).to_pylist() == ["cat", None]


def test_folders_are_those_of_the_path_and_of_what_is_inside_a_tar_file() -> None:
    paths = ["/a/b/1.jpg", "/a dog/2.jpg", "/x/ü/3", "/4.jpg", "/a/line\nbreak/5.jpg"]
    uris = pa.array([f"file://{path}" for path in paths])
    assert folder_labels(uris).to_pylist() == [PurePosixPath(path).parent.name or None for path in paths]
    others = {
        "s3://bucket/1.jpg": None,
        "s3://bucket/cat/1.jpg": "cat",
        "s3://bucket/x#y/1.jpg": "x#y",
        "s3://bucket/top/x.tar#cat/deep/1.jpg": "deep",
        "s3://bucket/top/x.tar#1.jpg": None,
        "s3://bucket/top/x.parquet#17": None,
    }
    assert folder_labels(pa.array(others)).to_pylist() == list(others.values())
    assert folder_labels(pa.chunked_array([list(others)])).to_pylist() == list(others.values())
