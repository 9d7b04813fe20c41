"""Rows of tables of texts: the same rows, texts and labels from every format that pandas writes; hostile files too."""

import json
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tlray.config import SourceConfig
from tlray.errors import SourceError
from tlray.lake.source.listing.report import ListingReport
from tlray.lake.source.open import open_images, open_source
from tlray.lake.source.read_images import read_images
from tlray.lake.source.read_spec import ReadSpec
from tlray.lake.source.texts.rows import TEXT

TEXTS = ["plain", "two\nlines", 'a "quoted" cell, with a comma', "😀 שלום", "  spaces  ", "tab\tinside", "x" * 300_000, "last"]


def listed(path: Path, **config: object) -> pa.Table:
    source = open_source(SourceConfig(uri=str(path), text="text", **config))  # type: ignore[arg-type]
    return pa.concat_tables(source.pages(ListingReport()))


def read(path: Path, **config: object) -> dict[str, str]:
    """Of each row, by what follows `#`, its text or the code of its error."""
    source = open_source(SourceConfig(uri=str(path), **{"text": "text", **config}))  # type: ignore[arg-type]
    found = {}
    for page in source.pages(ListingReport()):
        for batch in read_images(page, ReadSpec.of(source, None)):
            texts = iter(batch.inputs)
            for row in batch.rows.to_pylist():
                found[row["uri"].rpartition("#")[2]] = row["error"] or next(texts)
            assert next(texts, None) is None
    return found


def write(path: Path, texts: list[str], **columns: list[object]) -> Path:
    frame = pd.DataFrame({"text": texts, **columns})
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix in (".jsonl", ".ndjson"):
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl", ".ndjson"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}", TEXTS, label=[f"l{number % 3}" for number in range(len(TEXTS))])
    rows = listed(path, labels="label")
    assert rows["uri"].to_pylist() == [f"file://{path}#{number}" for number in range(len(TEXTS))]
    assert [text.decode() for text in rows[TEXT].to_pylist()] == TEXTS
    assert rows["label"].to_pylist() == [f"l{number % 3}" for number in range(len(TEXTS))]
    assert rows["size_bytes"].to_pylist() == [len(text.encode()) for text in TEXTS]
    assert read(path) == {str(number): text for number, text in enumerate(TEXTS)}


def test_etags_are_of_the_text_alone(tmp_path: Path) -> None:
    one, other = write(tmp_path / "x.csv", TEXTS), write(tmp_path / "x.jsonl", [*TEXTS[:3], "other", *TEXTS[4:]])
    ours, theirs = (listed(path)["etag"].to_pylist() for path in (one, other))
    assert [a == b for a, b in zip(ours, theirs, strict=True)] == [number != 3 for number in range(len(TEXTS))]
    assert len(set(ours)) == len(TEXTS)


def test_a_column_names_the_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", ["a", "b", "c"], id=[10, 7, 12])
    assert read(path, id="id") == {"10": "a", "7": "b", "12": "c"}
    with pytest.raises(SourceError, match="no 'id' in row 2"):
        read(write(tmp_path / "y.csv", ["a", "b"], id=["x", None]), id="id")
    with pytest.raises(SourceError, match=r"source\.id"):
        open_source(SourceConfig(uri=str(path), id="id"))


def test_folders_patterns_and_listings_of_tables(tmp_path: Path) -> None:
    for number in range(3):
        write(
            tmp_path / "t" / f"x-{number}.csv" if (tmp_path / "t").mkdir(exist_ok=True) is None else tmp_path,
            [f"{number}a", f"{number}b"],
        )
    write(tmp_path / "t" / "y.jsonl", ["ja"])
    (tmp_path / "t" / "notes.txt").write_text("not a table", encoding="utf-8")
    rows = listed(tmp_path / "t")
    assert sorted(rows[TEXT].to_pylist()) == [b"0a", b"0b", b"1a", b"1b", b"2a", b"2b", b"ja"]
    assert len(listed(tmp_path / "t", include=["*.jsonl"])) == 1
    assert len(listed(tmp_path / "t" / "x-{0..1}.csv")) == 4
    source = open_source(SourceConfig(uri=str(tmp_path / "t"), text="text", include=("x-*",)))
    covered = source.covers(pa.array([f"file://{tmp_path}/t/{name}" for name in ("x-0.csv#9", "y.jsonl#0", "../z.csv#0")]))
    assert covered.tolist() == [True, False, False]


def test_text_files_and_members_of_tars(tmp_path: Path) -> None:
    import tarfile

    folder = tmp_path / "f" / "news"
    folder.mkdir(parents=True)
    for name, data in {
        "1.txt": b"one",
        "2.TXT": b"\xef\xbb\xbftwo",
        "3.txt": b"",
        "4.txt": "größe".encode("latin-1"),
        "5.md": b"no",
    }.items():
        (folder / name).write_bytes(data)
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
        (folder / "1.cls").write_text("7", encoding="utf-8")
        archive.add(folder / "1.cls", "9.cls")
        archive.add(folder / "1.txt", "9.txt")
    texts = read(tmp_path / "f", text="txt")
    assert {Path(uri).name: text for uri, text in texts.items()} == {
        "1.txt": "one",
        "2.TXT": "two",
        "3.txt": "empty",
        "4.txt": "corrupt",
    }
    of_tar = {"1.txt": "one", "2.TXT": "two", "3.txt": "empty", "4.txt": "corrupt", "9.txt": "one"}
    assert read(tmp_path / "x.tar", text="txt") == of_tar
    assert {Path(uri).name: text for uri, text in read(tmp_path / "f", text="txt", encoding="latin-1").items()}[
        "4.txt"
    ] == "größe"
    source = open_source(SourceConfig(uri=str(tmp_path / "x.tar"), text="txt", labels="cls"))
    (batch,) = read_images(next(source.pages()), ReadSpec.of(source, None))
    assert (
        dict(zip(batch.rows["uri"].to_pylist(), batch.rows["label"].to_pylist(), strict=True))[f"file://{tmp_path}/x.tar#9.txt"]
        == "7"
    )


HOSTILE_JSON = [
    (b'{"text": "good"}', "good"),
    (b'{"text": "half \\ud83d of a pair"}', "corrupt"),
    (b'{"text": "a NUL \\u0000"}', "corrupt"),
    (b'{"text": "gr\xf6\xdfe"}', "corrupt"),
    (b'{"text": ', "corrupt"),
    (b"[1, 2]", "corrupt"),
    (b'{"text": null}', "empty"),
    (b'{"other": "x"}', "empty"),
    (b'{"text": 5}', "unsupported"),
    (b'{"text": ["a"]}', "unsupported"),
    (b'{"text": "\\u202eright to left \\ud83d\\ude00"}\r', "\u202eright to left 😀"),
    (b'{"text": "' + b"y" * 1_500_000 + b'"}', "y" * 1_500_000),
    (b"[" * 100_000, "corrupt"),
    (b'{"text": "   "}', "empty"),
]  # fmt: skip


def test_hostile_lines_are_failed_rows_and_the_others_are_right(tmp_path: Path) -> None:
    lines = [line for line, _ in HOSTILE_JSON]
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n\n".join(lines) + b"\n")
    assert read(tmp_path / "x.jsonl") == {str(number): expected for number, (_, expected) in enumerate(HOSTILE_JSON)}


def test_a_label_or_a_name_that_is_no_text_is_none(tmp_path: Path) -> None:
    half = b'{"text": "a", "topic": "\\ud83d", "id": "x"}\n'
    (tmp_path / "x.jsonl").write_bytes(half + b'{"text": "b", "topic": "\\ud83d\\ude00", "id": "y"}\n')
    assert read(tmp_path / "x.jsonl", labels="topic") == {"0": "corrupt", "1": "b"}
    (tmp_path / "x.jsonl").write_bytes(half)
    with pytest.raises(SourceError, match=r"x\.jsonl, line 1: no 'topic', which is to name the row"):
        read(tmp_path / "x.jsonl", id="topic")


def test_one_line_behind_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "good"}')
    assert read(tmp_path / "x.jsonl") == {"0": "good"}


def test_hostile_cells_are_failed_rows_and_the_others_are_right(tmp_path: Path) -> None:
    cells = {
        b"good": "good", b"gr\xf6\xdfe": "corrupt", b"a\x00b": "corrupt", b'""': "empty", b"  ": "empty",
        "\u00e9\U0001f600".encode(): "\u00e9\U0001f600", b"z" * 1_500_000: "z" * 1_500_000, b'"two\r\nlines"': "two\r\nlines",
    }  # fmt: skip
    for newline in (b"\n", b"\r\n"):
        (tmp_path / "x.csv").write_bytes(
            b"\xef\xbb\xbfn,text" + newline + newline.join(b"1," + cell for cell in cells) + newline
        )
        assert list(read(tmp_path / "x.csv").values()) == list(cells.values())


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_a_text_above_the_limit_is_a_failed_row(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}", ["short", "x" * 101, "x" * 100])
    assert read(path, max_image_bytes=100) == {"0": "short", "1": "too_large", "2": "x" * 100}


def test_a_table_in_another_encoding_is_read_as_declared(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("text\ngröße\n".encode("latin-1"))
    assert read(tmp_path / "x.csv") == {"0": "corrupt"}
    assert read(tmp_path / "x.csv", encoding="latin-1") == {"0": "größe"}
    (tmp_path / "y.csv").write_text("text\ngröße\n", encoding="utf-16")
    assert read(tmp_path / "y.csv") == {"0": "größe"}


def test_parquet_strings_that_are_no_utf8_and_other_types(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0"), pa.py_buffer(b"\xffok")])
    pq.write_table(pa.table({"text": bad}), tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet") == {"0": "corrupt", "1": "ok"}
    for values in (pa.array(["a", None, "a"]).dictionary_encode(), pa.array(["a", None, "a"], pa.large_string())):
        pq.write_table(pa.table({"text": values}), tmp_path / "y.parquet")
        assert read(tmp_path / "y.parquet") == {"0": "a", "1": "empty", "2": "a"}
    pl.DataFrame({"text": ["p"]}).write_parquet(tmp_path / "z.parquet")
    assert read(tmp_path / "z.parquet") == {"0": "p"}
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "n.parquet")
    with pytest.raises(SourceError, match="holds int64, expected texts"):
        read(tmp_path / "n.parquet")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.csv", "a,b\n1,2\n", "no column 'text' of texts; its columns are 'a', 'b'"),
        ("x.csv", 'text,n\n"never closed,1\nb,2\n', "ends within a quoted cell|cannot be read"),
        ("x.csv", "text\na,b,c\n", "cannot be read"),
        ("x.jsonl", json.dumps({"body": "x"}), "no line with a field 'text' of texts; there are body"),
        ("x.jsonl", "", "no line with a field"),
        ("x.parquet", "not parquet", "cannot be read"),
    ],
)
def test_what_is_no_table_of_texts_is_refused_in_a_line(tmp_path: Path, name: str, data: str, message: str) -> None:
    (tmp_path / name).write_text(data, encoding="utf-8")
    with pytest.raises(SourceError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_where_images_are_wanted_texts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text\na\n")
    with pytest.raises(SourceError, match="tlray extract and train a head on that"):
        open_images(SourceConfig(uri=str(tmp_path / "t.csv"), text="text"))
