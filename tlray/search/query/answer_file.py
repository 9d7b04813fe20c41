"""A Parquet file of answers, in a folder or a bucket: there when all of it is written, and not before."""

import mmap
import tempfile
import uuid
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from tlray.errors import DISK_FULL, ConfigError, StorageError
from tlray.lake.storage.open import open_store, require_writable
from tlray.lake.storage.uri import to_path, to_uri

_OTHER_KINDS = {".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".xlsx", ".npy", ".npz", ".feather", ".arrow"}
"""Endings of files that programs would open as something else than Parquet."""


def check_place(out: str) -> None:
    """Refuse a place for answers before any work is done.

    Raises:
        ConfigError: a name that says another kind of file, a folder, or a place below a file.
    """
    uri = to_uri(out)
    require_writable(uri)
    ending = PurePosixPath(uri).suffix.lower()
    if ending in _OTHER_KINDS:
        raise ConfigError(f"out is {out}, but answers are written as Parquet; name it {PurePosixPath(out).stem}.parquet")
    if not uri.startswith("file://"):
        return
    path = to_path(uri)
    if path.is_dir() or out.endswith("/"):
        raise ConfigError(f"out is {out}, a folder; expected the name of a Parquet file, such as {path / 'answers.parquet'}")
    nearest = next(parent for parent in path.parents if parent.exists())
    if not nearest.is_dir():
        raise ConfigError(f"out is {out}, but {nearest} is a file; expected a place in a folder")


def write_answers(out: str, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write tables of one schema as a Parquet file.

    Args:
        out: URI or path; a file that is there is replaced at the end.
        tables: of the answers, taken one by one.
        schema: theirs.

    Raises:
        ConfigError: nothing can be written there.
        StorageError: the disk is full, or the store failed.
    """
    uri = to_uri(out)
    try:
        if uri.startswith("file://"):
            path = to_path(uri)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".tlray-{uuid.uuid4().hex}.tmp")
            try:
                _write(temporary, tables, schema)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            return
        with tempfile.TemporaryDirectory(prefix="tlray-answers-") as folder:
            path = Path(folder) / "answers.parquet"
            _write(path, tables, schema)
            with (
                path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
                memoryview(data) as view,
            ):
                open_store(uri).write(uri, view)
    except OSError as error:
        kind = StorageError if error.errno in DISK_FULL else ConfigError
        raise kind(f"the answers cannot be written to {out}: {error.strerror or error}") from error


def _write(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
