"""Listings that stand in for LIST: S3 Inventories as AWS documents them, made here with Python's csv and with Parquet."""

import csv
import gzip
import hashlib
import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.lake.source.test_sources import items, source, tree
from tlray.errors import SourceError
from tlray.lake.source.listing.manifest import resolve_entry
from tlray.lake.source.listing.report import ListingReport
from tlray.lake.storage.open import open_store
from tlray.lake.storage.store import LISTING_SCHEMA

OBJECTS = [  # key, IsLatest, IsDeleteMarker, size, etag
    ("photos/a b+c%.jpg", True, False, 10, "e1"),
    ('photos/ü,"x".jpg', True, False, 11, "e2-7"),
    ("photos/old.jpg", False, False, 12, "e3"),
    ("photos/gone.jpg", True, True, None, None),
    ("photos/folder/", True, False, 0, "e4"),
    ("photos2/z.jpg", True, False, 13, "e5"),
    ("photos/sub/last.png", True, False, 14, "e6"),
]
LIVE = {
    f"s3://lake/{key}": (etag, size) for key, latest, marker, size, etag in OBJECTS if latest and not marker and key[-1] != "/"
}
CSV_SCHEMA = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag, StorageClass"


def csv_file(objects: list[Any]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    for key, latest, marker, size, etag in objects:
        flags = [str(flag).lower() for flag in (latest, marker)]
        writer.writerow(["lake", quote_plus(key, safe="/"), "v", *flags, size, "2026-01-01T00:00:00.000Z", etag, "STANDARD"])
    return gzip.compress(text.getvalue().encode())


def parquet_file(objects: list[Any]) -> bytes:
    names = ("key", "is_latest", "is_delete_marker", "size", "e_tag")
    columns = dict(zip(names, map(list, zip(*objects, strict=True)), strict=True))
    sink = io.BytesIO()
    pq.write_table(pa.table({"bucket": ["lake"] * len(objects), **columns}), sink)
    return sink.getvalue()


def inventory(folder: Path, form: str, **changes: Any) -> str:
    """An inventory of two data files, copied to local disk."""
    make, suffix = {"CSV": (csv_file, "csv.gz"), "Parquet": (parquet_file, "parquet")}[form]
    files = []
    for number, objects in enumerate((OBJECTS[:4], OBJECTS[4:])):
        data = make(objects)
        (folder / f"{number}.{suffix}").write_bytes(data)
        digest = hashlib.md5(data).hexdigest()
        files.append({"key": f"inventories/lake/data/{number}.{suffix}", "size": len(data), "MD5checksum": digest})
    manifest = {
        "sourceBucket": "lake",
        "destinationBucket": "arn:aws:s3:::inventories",
        "version": "2016-11-30",
        "creationTimestamp": "1514944800000",
        "fileFormat": form,
        "fileSchema": CSV_SCHEMA
        if form == "CSV"
        else "message s3.inventory { required binary bucket; optional binary e_tag; }",
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    return str(folder / "manifest.json")


def listed(pages: Any) -> dict[str, tuple[str, int]]:
    table = pa.concat_tables([LISTING_SCHEMA.empty_table(), *pages])
    rows = [(row["uri"], (row["etag"], row["size_bytes"])) for row in table.to_pylist()]
    assert len(dict(rows)) == len(rows)
    return dict(rows)


@pytest.mark.parametrize("form", ["CSV", "Parquet"])
def test_an_inventory_lists_what_is_live(form: str, tmp_path: Path) -> None:
    found = source("s3://lake/photos", listing=inventory(tmp_path, form), labels="folder")
    live = {uri: said for uri, said in LIVE.items() if uri.startswith("s3://lake/photos/")}
    assert listed(page.select(LISTING_SCHEMA.names) for page in found.pages()) == live
    assert (found.kind, found.asks_the_store) == ("images", False)
    assert items(found)["label"].to_pylist().count("sub") == 1
    covered = found.covers(pa.array([*LIVE, "s3://lake/photos/old.jpg"]))
    assert covered.tolist() == [uri.startswith("s3://lake/photos/") for uri in LIVE] + [True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fileFormat": "ORC"}, "format ORC; have it made as Parquet or CSV"),
        ({"fileSchema": "Bucket, Key, Size"}, "add ETag to its fields"),
        ({"files": "none"}, "is no manifest of an S3 Inventory"),
        ({"files": [{"key": "x/0.csv.gz", "MD5checksum": "0" * 32}]}, "has the MD5 .* but its manifest says 000"),
        ({"files": [{"key": "x/9.csv.gz", "MD5checksum": "0" * 32}]}, "9.csv.gz does not exist"),
    ],
)
def test_an_inventory_that_cannot_be_believed(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=message):
        source("s3://lake/photos", listing=inventory(tmp_path, "CSV", **changes))


def test_an_inventory_in_s3_names_the_bucket_of_its_files(s3_bucket: str, tmp_path: Path) -> None:
    bucket = s3_bucket.removeprefix("s3://")
    inventory(tmp_path, "CSV", destinationBucket=f"arn:aws:s3:::{bucket}")
    store = open_store(s3_bucket)
    for number in range(2):
        store.write(f"{s3_bucket}/inventories/lake/data/{number}.csv.gz", (tmp_path / f"{number}.csv.gz").read_bytes())
    uri = f"{s3_bucket}/inventories/lake/weekly/2026-11-08T01-00Z/manifest.json"
    store.write(uri, (tmp_path / "manifest.json").read_bytes())
    assert listed(source("s3://lake", listing=uri).listed(ListingReport())) == LIVE


def test_a_plain_list_is_relative_to_the_source(tmp_path: Path) -> None:
    root = tree(tmp_path / "lake", "a/1.jpg", "a/2.jpg", "b/3.jpg", "4 ü.jpg", "not listed.jpg")
    listing = tmp_path / "new.txt"
    listing.write_text(f"a/1.jpg\n\n4 ü.jpg\r\nfile://{root}/b/3.jpg\nfile:///elsewhere/5.jpg\na/gone.jpg\n", encoding="utf-8")
    found = source(root, listing=str(listing))
    expected = {f"file://{root}/{name}" for name in ("a/1.jpg", "4 ü.jpg", "b/3.jpg", "a/gone.jpg")}
    assert set(items(found)["uri"].to_pylist()) == expected
    assert items(found)["etag"].null_count == 4
    (tmp_path / "other.txt").write_text("s3://b/x.jpg\n")
    with pytest.raises(SourceError, match=r"names nothing below file://.*/lake; source\.uri is the prefix"):
        source(root, listing=str(tmp_path / "other.txt"))
    with pytest.raises(SourceError, match=r"source.listing: .* does not exist"):
        source(root, listing=str(tmp_path / "missing.txt"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match="is no list of names"):
        source(root, listing=str(tmp_path / "binary"))


def test_a_list_with_columns_brings_etags_and_labels(tmp_path: Path) -> None:
    listing = tmp_path / "keys.csv"
    listing.write_text('key,etag,size,kind\na/1.jpg,"""e1""",5,cat\ns3://lake/photos/2.jpg,e2,6,\n')
    found = source("s3://lake/photos/", listing=str(listing), labels="kind")
    rows = [tuple(row.values()) for row in items(found).to_pylist()]
    assert rows == [("s3://lake/photos/a/1.jpg", "e1", 5, "cat"), ("s3://lake/photos/2.jpg", "e2", 6, None)]


NAMES = [f"{year}/{month:02d}/{day}.jpg" for year in (2025, 2026) for month in (1, 6, 12) for day in "ab"] + ["2026"]
RANGES = [(None, None), ("2025/06", None), (None, "2026/01"), ("2025/06/b.jpg", "2026/06/b.jpg"), ("2026", "2026/01/a.jpg")]


@pytest.mark.parametrize(("first", "end"), RANGES)
@pytest.mark.parametrize("form", ["local", "s3", "listing", "manifest"])
def test_a_range_of_names(form: str, first: str | None, end: str | None, tmp_path: Path, request: Any) -> None:
    root = str(tmp_path / "lake") if form != "s3" else request.getfixturevalue("s3_bucket") + "/lake"
    names = [name for name in NAMES if form in ("s3", "listing", "manifest") or "/" in name]
    if form in ("local", "s3"):
        base = open_store(root)
        for name in names:
            base.write(f"{root}/{name}" if form == "s3" else f"file://{root}/{name}", b"x")
    (tmp_path / "list.csv").write_text("uri\n" + "".join(f"{root}/{name}\n" for name in names))
    more = {"listing": str(tmp_path / "list.csv")} if form == "listing" else {}
    where = str(tmp_path / "list.csv") if form == "manifest" else root
    prefix = root if form == "s3" else f"file://{root}"
    ends = {"keys_from": first, "keys_to": end}
    if form == "manifest":
        ends = {key: name and f"{prefix}/{name}" for key, name in ends.items()}
    found = source(where, **more, **ends)
    expected = {f"{prefix}/{name}" for name in names if (first or "") <= name < (end or "~")}
    assert {uri for page in found.pages() for uri in page["uri"].to_pylist()} == expected
    everything = [f"{prefix}/{name}" for name in names]
    assert {uri for uri, is_in in zip(everything, found.covers(pa.array(everything)), strict=True) if is_in} == expected


def test_a_range_of_no_names_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, "a.jpg")
    with pytest.raises(SourceError, match=r"source.keys_from must come before source.keys_to"):
        items(source(tmp_path, keys_from="b", keys_to="a"))


@pytest.mark.parametrize("name", ["~old/1.jpg", "a..b//c.jpg", "..x/.y"])
def test_odd_names_of_keys_are_names(name: str) -> None:
    assert resolve_entry("s3://bucket/photos", name, "list.txt", 0) == f"s3://bucket/photos/{name}"
