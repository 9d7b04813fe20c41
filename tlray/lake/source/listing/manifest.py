"""Manifests: tables (CSV, TSV, Parquet) with a URI for each image, and perhaps its label, etag and size.

Their entries are read as they stand: a URI that comes twice is listed twice, for the plan to take the first.
"""

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from tlray.columns.column import Column, fields_of
from tlray.config import SourceConfig
from tlray.errors import SourceError
from tlray.lake.source.label_text import label_texts
from tlray.lake.source.listing.carried import carried_values
from tlray.lake.source.listing.table_file import TableFile, open_table_file
from tlray.lake.storage.uri import join, to_uri

URI_COLUMNS = (
    "uri", "url", "path", "filename", "file", "file_name", "image", "image_path", "image_uri", "filepath", "key",
)  # fmt: skip
"""Names under which the URI column is found, the first one present."""

_SCHEMA = pa.schema([("uri", pa.string()), ("etag", pa.string()), ("size_bytes", pa.int64()), ("label", pa.string())])
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|file:/|[/~]")


@dataclass(frozen=True)
class _Columns:
    """Names of a manifest's columns; None where it has no such one."""

    uri: str
    etag: str | None
    size_bytes: str | None
    label: str | None

    @property
    def present(self) -> list[str]:
        return list(dict.fromkeys(name for name in (self.uri, self.etag, self.size_bytes, self.label) if name))


def read_manifest(
    uri: str, config: SourceConfig, *, folder: str | None = None, columns: Sequence[Column] = ()
) -> Iterator[pa.Table]:
    """Read the entries of a manifest, a batch of rows at a time.

    Args:
        uri: of the manifest; its ending tells the format.
        config: names the column of URIs (`column`) and of labels.
        folder: that relative entries are relative to; default the manifest's own. Where it is given the manifest stands in for
            a store's listing, whose sizes may be called `size` beside an `etag`.
        columns: that travel.

    Yields:
        uri string, etag string or null, size_bytes int64 or null, label string or null, and the columns.

    Raises:
        SourceError: no such column, a row without URI, a value of another type than its column's, or a file that is not a table
            of that format.
        StorageError: the store failed.
    """
    file = open_table_file(uri)
    names = _columns(file, config, is_listing=folder is not None)
    folder, row = folder or uri.rpartition("/")[0], 0
    schema = pa.schema([*_SCHEMA, *fields_of(columns)])
    for batch in file.batches(list(dict.fromkeys([*names.present, *(column.name for column in columns)]))):
        nothing = pa.nulls(len(batch), pa.string())
        etags = _texts(batch, names.etag, file) if names.etag else nothing
        own = [
            _resolved(_texts(batch, names.uri, file), folder, uri, row),
            _null_if_empty(pc.utf8_trim(etags, characters='"')),
            _sizes(batch, names.size_bytes, file),
            _labels(batch, names.label, file) if names.label else nothing,
        ]
        yield pa.table([*own, *carried_values(batch, columns, uri, row)], schema=schema)
        row += len(batch)


def own_columns(file: TableFile, config: SourceConfig, *, is_listing: bool) -> list[str]:
    """Names of the columns of a manifest that are read as URI, etag and size.

    Raises:
        SourceError: it has no column of URIs, or of labels.
    """
    names = _columns(file, config, is_listing=is_listing)
    return [name for name in (names.uri, names.etag, names.size_bytes) if name]


def _columns(file: TableFile, config: SourceConfig, *, is_listing: bool) -> _Columns:
    def first(*names: str) -> str | None:
        return next((name for name in names if name in file.columns), None)

    column = first(config.column) if config.column else first(*URI_COLUMNS)
    if column is None:
        wanted = repr(config.column) if config.column else f"of URIs ({', '.join(URI_COLUMNS)})"
        raise SourceError(
            f"the manifest {file.uri} has no column {wanted}; its columns are {', '.join(map(repr, file.columns))}"
            f"{file.hint()}. Where that is data, put a header line first; else name the column with source.column"
        )
    label = None if config.labels in ("none", "folder") else first(config.labels)
    if label is None and config.labels not in ("none", "folder"):
        raise SourceError(
            f"the manifest {file.uri} has no column {config.labels!r} of labels; its columns are {', '.join(file.columns)}"
        )
    size = first("size_bytes")
    if size is None and is_listing and "etag" in file.columns:
        size = first("size")  # of anything else than a store's listing it may be pixels, or megabytes
    return _Columns(column, first("etag"), size, label)


def _texts(batch: pa.RecordBatch, name: str, file: TableFile) -> pa.Array:
    try:
        return batch[name].cast(pa.string())
    except pa.ArrowException as error:
        raise SourceError(f"{file.uri}: column {name!r} holds {batch[name].type}, expected texts") from error


def _labels(batch: pa.RecordBatch, name: str, file: TableFile) -> pa.Array:
    try:
        return label_texts(batch[name])
    except SourceError as error:
        raise SourceError(f"{file.uri}, column {name!r}: {error}") from error


def _sizes(batch: pa.RecordBatch, name: str | None, file: TableFile) -> pa.Array:
    if name is None:
        return pa.nulls(len(batch), pa.int64())
    try:
        return label_texts(batch[name]).cast(pa.int64())  # 12.0, as pandas writes whole numbers where one is missing, is 12
    except (pa.ArrowException, SourceError) as error:
        what = " ".join(str(error).split())
        raise SourceError(f"{file.uri}: column {name!r} is not of whole numbers of bytes: {what}") from error


def _resolved(texts: pa.Array, folder: str, manifest: str, row: int) -> pa.Array:
    """Entries from a row on, as `resolve_entry` has them; quicker where all are of S3."""
    if not texts.null_count and pc.all(pc.starts_with(texts, "s3://")).as_py():
        return texts
    return pa.array([resolve_entry(folder, text, manifest, row + at) for at, text in enumerate(texts.to_pylist())], pa.string())


def resolve_entry(folder: str, text: str | None, manifest: str, row: int) -> str:
    """An entry as a URI; `.` and `..` in a relative one are resolved.

    Args:
        folder: URI that relative entries are relative to.
        text: the entry.
        manifest: URI of the file, for the message.
        row: number of the entry from 0 up, likewise.

    Raises:
        SourceError: there is no URI, or one of an unknown scheme.
    """
    if text is None or not text.strip():
        raise SourceError(f"the manifest {manifest} has no URI in row {row + 1} (the header not counted); remove or fill it")
    if text.startswith("s3://"):
        return text
    try:
        if _ABSOLUTE.match(text) and not (text.startswith("~") and folder.startswith("s3://")):
            return to_uri(text)
    except SourceError as error:
        raise SourceError(f"the manifest {manifest}, row {row + 1} (the header not counted): {error}") from error
    scheme, _, rest = join(folder, text).partition("://")
    odd = not {".", ".."}.isdisjoint(text.split("/"))
    return f"{scheme}://{posixpath.normpath(rest) if odd else rest}"


def _null_if_empty(column: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
