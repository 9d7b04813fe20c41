"""Manifests: tables (CSV, TSV, Parquet) with a URI for each image, and perhaps its label, etag and size.

Their entries are read as they stand: a URI that comes twice is listed twice, for the plan to take the first.
"""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from tlray.config import SourceConfig
from tlray.errors import SourceError
from tlray.lake.source.label_text import label_texts
from tlray.lake.storage.open import open_store
from tlray.lake.storage.store import READ_BUFFER_BYTES
from tlray.lake.storage.uri import join, to_uri

URI_COLUMNS = (
    "uri", "url", "path", "filename", "file", "file_name", "image", "image_path", "image_uri", "filepath", "key",
)  # fmt: skip
"""Names under which the URI column is found, the first one present."""

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_BATCH_ROWS = 65_536
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|[/~]")


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


def read_manifest(uri: str, config: SourceConfig, *, folder: str | None = None) -> Iterator[pa.Table]:
    """The entries of a manifest, streamed.

    Args:
        uri: of the manifest; its ending tells the format.
        config: names the column of URIs (`column`) and of labels.
        folder: that relative entries are relative to; default the manifest's own.

    Yields:
        uri string, etag string or null, size_bytes int64 or null, label string or null.

    Raises:
        SourceError: no such column, a row without URI, or a file that is not a table of that format.
        StorageError: the store failed.
    """
    folder, row = folder or uri.rpartition("/")[0], 0
    try:
        for names, batch in _parquet_batches(uri, config) if uri.endswith(".parquet") else _csv_batches(uri, config):
            texts = batch[names.uri].cast(pa.string())
            nothing = pa.nulls(len(batch), pa.string())
            etags = batch[names.etag].cast(pa.string()) if names.etag else nothing
            labels = label_texts(batch[names.label]) if names.label else nothing
            yield pa.table(
                {
                    "uri": _resolved(texts, folder, uri, row),
                    "etag": _null_if_empty(pc.utf8_trim(etags, characters='"')),
                    "size_bytes": _sizes(batch[names.size_bytes]) if names.size_bytes else pa.nulls(len(batch), pa.int64()),
                    "label": labels,
                }
            )
            row += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"the manifest {uri} cannot be read after row {row}: {error}") from error


def _csv_batches(uri: str, config: SourceConfig) -> Iterator[tuple[_Columns, pa.RecordBatch]]:
    delimiter = _DELIMITERS.get(uri[-4:].lower())
    if delimiter is None:
        raise SourceError(f"{uri} is not a manifest by its name; expected one that ends in .csv, .tsv or .parquet")
    store = open_store(uri)
    options = {
        "read_options": pyarrow.csv.ReadOptions(block_size=READ_BUFFER_BYTES),
        "parse_options": pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
    }
    with store.stream(uri)[0] as stream, pyarrow.csv.open_csv(stream, **options) as reader:
        names = _columns(reader.schema.names, config, uri)
    # Only now are the names known that must stay text: to guess types would turn the label `007` into 7.
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names.present, pa.string()), include_columns=names.present, strings_can_be_null=False
    )
    with store.stream(uri)[0] as stream, pyarrow.csv.open_csv(stream, convert_options=convert, **options) as reader:
        for batch in reader:
            yield names, batch


def _parquet_batches(uri: str, config: SourceConfig) -> Iterator[tuple[_Columns, pa.RecordBatch]]:
    with open_store(uri).open(uri) as stream:
        file = pq.ParquetFile(stream, buffer_size=READ_BUFFER_BYTES, pre_buffer=False)
        names = _columns(file.schema_arrow.names, config, uri)
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(_BATCH_ROWS, [group], names.present):
                yield names, batch


def _columns(present: list[str], config: SourceConfig, uri: str) -> _Columns:
    def first(*names: str) -> str | None:
        return next((name for name in names if name in present), None)

    column = first(config.column) if config.column else first(*URI_COLUMNS)
    if column is None:
        expected = f"a column {config.column!r}" if config.column else f"a column of URIs ({', '.join(URI_COLUMNS)})"
        raise SourceError(
            f"the manifest {uri} has no {expected.removeprefix('a ')}; its columns are {', '.join(map(repr, present))}. "
            "Where that is data, put a header line first; else name the column with source.column"
        )
    label = None if config.labels == "none" else first(config.labels)
    if label is None and config.labels not in ("none", "folder"):
        raise SourceError(f"the manifest {uri} has no column {config.labels!r} of labels; its columns are {', '.join(present)}")
    return _Columns(column, first("etag"), first("size_bytes", "size"), label)


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


def _sizes(column: pa.Array) -> pa.Array:
    return _null_if_empty(column.cast(pa.string())).cast(pa.int64())
