"""Tables as spreadsheets and scripts write them, against Python's csv module; or one line that says what is wrong."""

import csv
import io
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.lake.source.test_sources import items, source
from tlray.config import SourceConfig
from tlray.errors import SourceError
from tlray.lake.source.listing.manifest import read_manifest
from tlray.lake.source.listing.table_file import open_table_file
from tlray.lake.source.open import check_names_lead_somewhere

ROWS = [["path", "label", "note"], ["a b.jpg", "Kätzchen", ""], ["c,d.jpg", 'a "dog"', "two\nlines"], ["漢#1%.jpg", "007", "x"]]


def read(path: Path, *columns: str) -> list[list[str]]:
    file = open_table_file(f"file://{path}")
    return [list(row) for batch in file.batches(columns) for row in zip(*(column.to_pylist() for column in batch), strict=True)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-32"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(encoding: str, line_end: str, tmp_path: Path) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=line_end, quoting=csv.QUOTE_ALL).writerows(ROWS)
    data = "\ufeff".encode("utf-16-le") + text.getvalue().encode("utf-16-le") if encoding == "utf-16-le-bom" else b""
    (tmp_path / "m.csv").write_bytes(data or text.getvalue().encode(encoding))
    assert open_table_file(f"file://{tmp_path}/m.csv").columns == tuple(ROWS[0])
    assert read(tmp_path / "m.csv", "path", "label") == [row[:2] for row in ROWS[1:]]
    found = items(source(tmp_path / "m.csv", labels="label"))
    assert found["uri"].to_pylist() == [f"file://{tmp_path}/{row[0]}" for row in ROWS[1:]]


BROKEN = {
    "latin-1 header": ("path,étiquette\na.jpg,x\n".encode("latin-1"), "is not UTF-8 .*save it as UTF-8"),
    "latin-1 cell": ("path,label\na.jpg,é\n".encode("latin-1"), "is not UTF-8 .*save it as UTF-8"),
    "utf-16 without a mark": ("path,label\na.jpg,x\n".encode("utf-16-le"), "NUL characters.*save it as UTF-8"),
    "utf-16 that ends early": ("path,label\na.jpg,x\n".encode("utf-16")[:-1], "is not UTF-16"),
    "a NUL": (b"path,label\na\x00.jpg,x\n", "NUL character in its column 'path'"),
    "too many cells": (b"path,label\na.jpg,x,y\n", "Expected 2 columns, got 3"),
    "too few cells": (b"path,label\na.jpg,x\nb.jpg\n", "Expected 2 columns, got 1"),
    "a column twice": (b"path,label,label\na.jpg,x,y\n", "has 2 columns named 'label'; rename all but one"),
    "semicolons": (b"path;label\na.jpg;x\n", "no column of URIs .* its cells seem to be separated by semicolons, expected ','"),
    "ends within quotes": (b'path,label\na.jpg,x\nb.jpg,"y\nc.jpg,z\n', "ends within a quoted cell"),
    "ends within quotes, one column": (b'path\na.jpg\n"b.jpg\nc.jpg\n', "ends within a quoted cell"),
    "nothing": (b"", "Empty CSV"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_one_line(name: str, tmp_path: Path) -> None:
    data, message = BROKEN[name]
    (tmp_path / "m.csv").write_bytes(data)
    labels = "label" if b"label" in data and b";" not in data else "none"
    with pytest.raises(SourceError, match=message) as caught:
        items(source(tmp_path / "m.csv", labels=labels))
    assert "\n" not in str(caught.value) and "m.csv" in str(caught.value)


def test_a_quotation_mark_within_a_cell_is_only_that(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text('path,label\na.jpg,5" nail\nb.jpg,screw')
    assert read(tmp_path / "m.csv", "path", "label") == [["a.jpg", '5" nail'], ["b.jpg", "screw"]]


def test_a_column_that_is_not_asked_for_may_come_twice(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,label,x,x\na.jpg,cat,1,2\n")
    assert items(source(tmp_path / "m.csv", labels="label"))["label"].to_pylist() == ["cat"]
    twice = pa.table([["a.jpg"], ["cat"], ["dog"]], names=["path", "label", "label"])
    pq.write_table(twice, tmp_path / "m.parquet")
    assert len(items(source(tmp_path / "m.parquet"))) == 1
    with pytest.raises(SourceError, match="has 2 columns named 'label'"):
        items(source(tmp_path / "m.parquet", labels="label"))


@pytest.mark.parametrize(
    ("column", "labels", "message"),
    [
        (pa.array([["a.jpg"]]), "none", r"column 'path' holds list<.*>, expected texts"),
        (pa.array([{"bytes": b"x"}]), "none", r"column 'path' holds struct<.*>, expected texts"),
        (pa.array([b"\xff"]), "none", "column 'path' holds binary, expected texts"),
        (pa.array(["a.jpg"]), "tags", r"column 'tags': labels of type list<.*>.* expected one label for each image"),
    ],
)
def test_lists_and_structs_where_texts_are_expected(column: pa.Array, labels: str, message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": column, "tags": [["x", "y"]]}), tmp_path / "m.parquet")
    with pytest.raises(SourceError, match=message):
        items(source(tmp_path / "m.parquet", labels=labels, format="manifest"))


def test_texts_of_any_type_are_texts(tmp_path: Path) -> None:
    names = pa.array(["a.jpg", "b.jpg"])
    for column in (
        names.dictionary_encode(),
        names.cast(pa.large_string()),
        names.cast(pa.binary()),
        names.cast(pa.string_view()),
    ):
        pq.write_table(pa.table({"path": column, "size_bytes": pa.array([1.0, None])}), tmp_path / "m.parquet")
        found = items(source(tmp_path / "m.parquet", format="manifest"))
        assert found["uri"].to_pylist() == [f"file://{tmp_path}/a.jpg", f"file://{tmp_path}/b.jpg"]
        assert found["size_bytes"].to_pylist() == [1, None]


@pytest.mark.parametrize("size", ["512x512", "12.5", "999999999"])
def test_a_size_of_a_manifest_s_own_is_none_of_ours(size: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(f"path,label,size\na.jpg,cat,{size}\n")
    assert items(source(tmp_path / "m.csv", labels="label"))["size_bytes"].to_pylist() == [None]
    listing = read_manifest(f"file://{tmp_path}/m.csv", SourceConfig(uri="x"), folder="s3://b")
    assert pa.concat_tables(listing)["size_bytes"].to_pylist() == [None]
    (tmp_path / "m.csv").write_text("path,size_bytes\na.jpg,12\n")
    assert items(source(tmp_path / "m.csv"))["size_bytes"].to_pylist() == [12]


def test_file_uris_with_percent_encoding_and_without(tmp_path: Path) -> None:
    folder = tmp_path / "my photos #1"
    folder.mkdir()
    names = ["a b.jpg", "100%.jpg", "%41.jpg", "A.jpg", "ü.jpg", "x#y.jpg"]
    for name in names:
        (folder / name).write_bytes(b"x")
    encoded = [(folder / name).as_uri() for name in names]
    literal = [f"file://{folder}/{name}" for name in names]
    short = [f"file:{quote(str(folder / name))}" for name in names]
    local = [f"file://localhost{quote(str(folder / name))}" for name in names]
    for entries in (encoded, literal, short, local):
        (tmp_path / "m.csv").write_text("uri\n" + "\n".join(f'"{entry}"' for entry in entries), encoding="utf-8")
        assert items(source(tmp_path / "m.csv"))["uri"].to_pylist() == literal
    assert items(source(folder.as_uri()))["uri"].to_pylist() == sorted(literal)


def test_names_that_lead_nowhere_and_patterns_over_manifests(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(b"x")
    (tmp_path / "train.csv").write_text("filename,label\n" + "".join(f"{number}.jpg,x\n" for number in range(1000)))
    with pytest.raises(
        SourceError, match=r"none of 16 names .*/0\.jpg, so all .* are relative to file://.*--source\.listing file://"
    ):
        check_names_lead_somewhere(source(tmp_path / "train.csv"))
    (tmp_path / "0.jpg").write_bytes(b"x")
    check_names_lead_somewhere(source(tmp_path / "train.csv"))
    (tmp_path / "train.csv").write_text("filename\n1.jpg\n")
    check_names_lead_somewhere(source(tmp_path / "images", listing=str(tmp_path / "train.csv")))
    (tmp_path / "train.csv").write_text("filename\nimages/1.jpg\n")
    with pytest.raises(
        SourceError, match=r"as file://.*/images/images/1\.jpg, .* relative names are relative to file://.*/images\."
    ):
        check_names_lead_somewhere(source(tmp_path / "images", listing=str(tmp_path / "train.csv")))
    for key in ("include", "exclude"):
        with pytest.raises(SourceError, match=f"source.{key} chooses among the names below a folder, but .* is a manifest"):
            source(tmp_path / "train.csv", **{key: ("*.jpg",)})


def test_a_parquet_manifest_has_all_rows_of_its_footer_or_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"path": [f"{number}.jpg" for number in range(100)], "label": ["x"] * 100}), path)
    whole, hundred = path.read_bytes(), b"\xc8\x01"  # as Thrift's compact protocol writes it: zigzag, then base 128
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    places = [at for at in range(footer, len(whole)) if whole.startswith(hundred, at)]
    refused = 0
    for place in places:
        path.write_bytes(whole[:place] + b"\xca\x01" + whole[place + 2 :])  # one more than there are
        try:
            assert len(items(source(path, labels="label"))) == 100
        except SourceError as error:
            assert "m.parquet cannot be read" in str(error)
            refused += 1
    assert refused
