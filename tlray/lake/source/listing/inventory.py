"""Listings that were made by others and stand in for LIST: an S3 Inventory, or a plain list of names.

An inventory is a `manifest.json` and the data files that it names
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html). A plain list is a CSV, TSV or Parquet
file as a manifest is, or any other file with one name a line.
"""

import contextlib
import gzip
import hashlib
import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, cast
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError

from tlray.columns.column import Column
from tlray.config import SourceConfig
from tlray.errors import ObjectNotFoundError, SourceError
from tlray.lake.source.listing.manifest import read_manifest, resolve_entry
from tlray.lake.source.listing.table_file import TABLE_ENDINGS, ending_of
from tlray.lake.storage.open import open_store
from tlray.lake.storage.store import LISTING_SCHEMA, READ_BUFFER_BYTES
from tlray.lake.storage.uri import join

INVENTORY_NAME = "manifest.json"
_LINES = 10_000

_FIELDS = ("Bucket", "Key", "IsLatest", "IsDeleteMarker", "Size", "ETag")
_PARQUET_NAMES = dict(zip(("bucket", "key", "is_latest", "is_delete_marker", "size", "e_tag"), _FIELDS, strict=True))
"""What Parquet files call what CSV files and their schema call so."""


class _DataFile(BaseModel):
    key: str
    md5: str = Field(alias="MD5checksum")


class _Inventory(BaseModel):
    """The fields of an S3 Inventory's `manifest.json` that are used."""

    source_bucket: str = Field(alias="sourceBucket")
    file_format: str = Field(alias="fileFormat")
    file_schema: str = Field(alias="fileSchema")
    destination: str = Field(alias="destinationBucket")
    files: list[_DataFile]


def read_listing(uri: str, root: str, config: SourceConfig, columns: Sequence[Column] = ()) -> Iterator[pa.Table]:
    """What a listing names, streamed, in its own order.

    Args:
        uri: of the listing; its name tells the form.
        root: the source's URI; names without a scheme are relative to it.
        config: as for a manifest: names the columns of URIs and of labels.
        columns: that travel; only a table has any.

    Yields:
        Tables of at least LISTING_SCHEMA; etag and size are null where the listing has none.

    Raises:
        SourceError: it is not there, is damaged, or is of a form that cannot be read.
        StorageError: the store failed.
    """
    try:
        if uri.rpartition("/")[2] == INVENTORY_NAME:
            yield from _read_inventory(uri)
        elif ending_of(uri) in TABLE_ENDINGS:
            yield from read_manifest(uri, config, folder=root.rstrip("/"), columns=columns)
        else:
            yield from _read_lines(uri, root.rstrip("/"))
    except ObjectNotFoundError as error:
        raise SourceError(f"source.listing: {error}") from error


def _read_lines(uri: str, root: str) -> Iterator[pa.Table]:
    stream, _ = open_store(uri).stream(uri)
    names: list[str] = []
    with io.TextIOWrapper(cast("Any", stream), encoding="utf-8", newline="\n") as lines:
        try:
            for number, line in enumerate(lines):
                name = line.rstrip("\r\n")
                if name:
                    names.append(resolve_entry(root, name, uri, number))
                if len(names) == _LINES:
                    yield _page(pa.array(names))
                    names = []
        except UnicodeDecodeError as error:
            raise SourceError(
                f"source.listing {uri} is no list of names, one a line: {error}; expected that, a .csv, .tsv or .parquet file, "
                f"or an S3 Inventory's {INVENTORY_NAME}"
            ) from error
    yield _page(pa.array(names, pa.string()))


def _page(uris: pa.Array) -> pa.Table:
    return pa.table([uris, pa.nulls(len(uris), pa.string()), pa.nulls(len(uris), pa.int64())], schema=LISTING_SCHEMA)


def _read_inventory(uri: str) -> Iterator[pa.Table]:
    try:
        inventory = _Inventory.model_validate_json(open_store(uri).read(uri).data)
    except (ValidationError, json.JSONDecodeError) as error:
        raise SourceError(f"{uri} is no manifest of an S3 Inventory: {' '.join(str(error).split())}") from error
    names = [name.strip() for name in inventory.file_schema.split(",")]
    if inventory.file_format not in ("CSV", "Parquet"):
        raise SourceError(f"the inventory {uri} is of format {inventory.file_format}; have it made as Parquet or CSV")
    if "ETag" not in names and "e_tag" not in inventory.file_schema:
        raise SourceError(f"the inventory {uri} does not say ETags, so no change could be noticed; add ETag to its fields")
    for file in inventory.files:
        where = _data_uri(uri, inventory, file)
        with _fetched(where, file.md5) as stream:
            try:
                batches = _parquet_batches(stream) if inventory.file_format == "Parquet" else _csv_batches(stream, names)
                for batch in batches:
                    yield _current(batch, inventory.source_bucket)
            except (pa.ArrowException, OSError, EOFError) as error:
                raise SourceError(f"the inventory file {where} cannot be read: {error}") from error


def _data_uri(uri: str, inventory: _Inventory, file: _DataFile) -> str:
    """A data file's URI: in the bucket that the inventory names; for a copy on local disk, in the folder of its manifest."""
    if uri.startswith("s3://"):
        return f"s3://{inventory.destination.rpartition(':')[2]}/{file.key}"
    return join(uri.rpartition("/")[0], file.key.rpartition("/")[2])


@contextlib.contextmanager
def _fetched(uri: str, md5: str) -> Iterator[BinaryIO]:
    """A data file on local disk, found to be what the manifest says before any of it is believed."""
    digest = hashlib.md5(usedforsecurity=False)
    with tempfile.TemporaryFile(prefix="tlray-") as copy:
        with open_store(uri).stream(uri)[0] as stream:
            while block := stream.read(READ_BUFFER_BYTES):
                digest.update(block)
                copy.write(block)
        if digest.hexdigest() != md5:
            raise SourceError(f"the inventory file {uri} has the MD5 {digest.hexdigest()}, but its manifest says {md5}")
        copy.seek(0)
        yield cast("BinaryIO", copy)


def _csv_batches(stream: BinaryIO, names: list[str]) -> Iterator[pa.RecordBatch]:
    wanted = [name for name in _FIELDS if name in names]
    read = pyarrow.csv.ReadOptions(column_names=names, block_size=READ_BUFFER_BYTES)
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), include_columns=wanted, strings_can_be_null=False
    )
    with gzip.open(stream) as text, pyarrow.csv.open_csv(text, read_options=read, convert_options=convert) as reader:
        for batch in reader:
            columns = dict(zip(wanted, batch.columns, strict=True))
            columns["Key"] = _decoded(columns["Key"])
            yield pa.RecordBatch.from_pydict(columns)


def _decoded(keys: pa.Array) -> pa.Array:
    """Keys of a CSV inventory, which are URL-encoded as S3 does it elsewhere (botocore decodes those the same way)."""
    is_encoded = pc.match_substring_regex(keys, "[%+]")
    decoded = [unquote_plus(key) for key in keys.filter(is_encoded).to_pylist()]
    return pc.replace_with_mask(keys, is_encoded, pa.array(decoded, pa.string())) if decoded else keys


def _parquet_batches(stream: BinaryIO) -> Iterator[pa.RecordBatch]:
    file = pq.ParquetFile(stream)
    names = [name for name in _PARQUET_NAMES if name in file.schema_arrow.names]
    for batch in file.iter_batches(columns=names):
        yield batch.rename_columns([_PARQUET_NAMES[name] for name in batch.schema.names])


def _current(batch: pa.RecordBatch, bucket: str) -> pa.Table:
    """The objects of an inventory's rows: neither older versions nor deleted ones, nor markers of folders."""
    keeps = pc.and_(pc.equal(batch["Bucket"], bucket), pc.invert(pc.ends_with(batch["Key"], "/")))
    for name, wanted in (("IsLatest", "true"), ("IsDeleteMarker", "false")):
        if name in batch.schema.names:
            said = pc.utf8_lower(batch[name].cast(pa.string()))
            keeps = pc.and_(keeps, pc.fill_null(pc.or_(pc.equal(said, wanted), pc.equal(said, "")), True))
    rows = batch.filter(keeps)
    sizes = rows["Size"].cast(pa.string()) if "Size" in rows.schema.names else pa.nulls(len(rows), pa.string())
    sizes = pc.if_else(pc.equal(sizes, ""), pa.scalar(None, pa.string()), sizes).cast(pa.int64())
    uris = pc.binary_join_element_wise(f"s3://{bucket}", rows["Key"], "/")
    return pa.table([uris, pc.utf8_trim(rows["ETag"], characters='"'), sizes], schema=LISTING_SCHEMA)
