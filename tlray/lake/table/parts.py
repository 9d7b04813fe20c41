"""Parts: the Parquet files of a table, written by workers and read back by anyone.

A part's name ends in the sha256 of its own bytes, so a name is never used twice for different bytes and `verify` needs
nothing but the file. Shape legend: B rows, D embedding length.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from tlray.errors import TableCorruptError, first_line
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import join
from tlray.recipe import Storage

RECIPE_KEY = "tlray.recipe_id"
ROW_GROUP_ROWS = 8192
"""Rows of a row group: 64 MiB of raw float32 at 2,048 dimensions, so that readers stream a large part."""

READ_THREADS = 8
"""Parts that are read at once: an object store answers slowly, and many at a time."""


class Part(BaseModel):
    """One file of a table, as its log knows it.

    Attributes:
        path: relative to the table.
        status: the partition: `ok` or `failed`.
        rows: number of rows.
        size_bytes: size of the file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    status: str
    rows: int
    size_bytes: int

    @property
    def sha256(self) -> str:
        """Hash of the file's bytes, as its name says it."""
        return self.path.removesuffix(".parquet").rsplit("-", 1)[-1]


@dataclass(frozen=True)
class Change:
    """What one commit does to a table.

    Attributes:
        add: parts that become visible.
        remove: parts that readers do not see any more.
        data_change: False where the same rows only move between files.
        fields: that the table has from now on, where it does not have them yet; null in the parts that are there.
    """

    add: Sequence[Part] = ()
    remove: Sequence[Part] = ()
    data_change: bool = True
    fields: Sequence[pa.Field] = ()


def row_counts(parts: Iterable[Part]) -> dict[str, int]:
    """Count the rows of each partition, `ok` and `failed`."""
    counts = {"ok": 0, "failed": 0}
    for part in parts:
        counts[part.status] += part.rows
    return counts


def round_to_half(vectors: np.ndarray) -> np.ndarray:
    """Round float32 to the 10 mantissa bits of float16, to nearest even, keeping float32's range.

    The 13 zeroed bits compress away: with BYTE_STREAM_SPLIT and zstd the column takes the room of a float16 one, and every
    engine still reads plain floats. The rounding is the usual add-half-minus-one-plus-lsb on the bit pattern (Hacker's
    Delight, 2nd ed., section 3-1, applied to a power-of-two step).

    Args:
        vectors: float32 of any shape, finite.

    Returns:
        A new float32 array; relative error at most 2**-11.
    """
    bits = vectors.view(np.uint32)
    rounded = bits + (np.uint32(0x0FFF) + ((bits >> np.uint32(13)) & np.uint32(1)))
    rounded &= np.uint32(0xFFFFE000)
    return rounded.view(np.float32)


def vector_column(features_BD: np.ndarray, storage: Storage) -> pa.FixedSizeListArray:
    """Make an Arrow column of embeddings.

    Args:
        features_BD: float32.
        storage: `half` rounds to 10 mantissa bits first.
    """
    values = np.ascontiguousarray(features_BD, np.float32)
    if storage == "half":
        values = round_to_half(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def vectors_of(column: pa.ChunkedArray, into_BD: np.ndarray | None = None) -> np.ndarray:
    """Read the vectors of a column without nulls, whatever list type it was read as; the reverse of `vector_column`.

    Args:
        column: of lists.
        into_BD: where to put the vectors, contiguous float32; default a new array.

    Returns:
        features_BD, float32; `into_BD` where it was given.

    Raises:
        TableCorruptError: rows of different lengths, or nulls.
    """
    if column.null_count:
        raise TableCorruptError(f"{column.null_count} of {len(column)} embeddings are null where all were expected")
    if not len(column):
        return np.empty((0, 0), np.float32)
    pieces = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    floats = sum(len(piece) for piece in pieces)
    if into_BD is not None and into_BD.size != floats:
        raise TableCorruptError(f"a column of {len(column)} rows has {floats} floats, expected {into_BD.size}")
    values = np.concatenate(pieces, out=None if into_BD is None else into_BD.reshape(-1))
    length = len(values) // len(column)
    for chunk in column.chunks:
        if pa.types.is_list(chunk.type) and len(chunk) and not np.all(np.diff(chunk.offsets.to_numpy()) == length):
            raise TableCorruptError(f"embeddings of different lengths in one column; expected {length} floats in each row")
    return values.reshape(len(column), length)


def encode_part(rows: pa.Table | Iterable[pa.Table], recipe_id: str) -> bytes:
    """Encode rows as the bytes of a Parquet file.

    zstd and BYTE_STREAM_SPLIT on numbers, neither dictionary nor statistics on them; statistics on `uri` alone, for
    pruning. The Arrow schema is left out of the file: with it, readers would see fixed-size lists where the Delta schema
    promises lists (Polars refuses that).

    Args:
        rows: without the partition column; in several tables of one schema, of which little more is held than a row group.
        recipe_id: kept in the file's metadata.
    """
    tables = iter([rows] if isinstance(rows, pa.Table) else rows)
    waiting = [next(tables)]
    sink = io.BytesIO()
    with _writer(sink, waiting[0].schema) as writer:
        for table in tables:
            waiting.append(table)
            if sum(map(len, waiting)) > ROW_GROUP_ROWS:
                full = pa.concat_tables(waiting)
                writer.write_table(full.slice(0, ROW_GROUP_ROWS))
                waiting = [full.slice(ROW_GROUP_ROWS)]
        writer.write_table(pa.concat_tables(waiting), row_group_size=ROW_GROUP_ROWS)
        writer.add_key_value_metadata({RECIPE_KEY: recipe_id})
    return sink.getvalue()


def _writer(sink: io.BytesIO, schema: pa.Schema) -> pq.ParquetWriter:
    leaves = [_leaf(field) for field in schema]
    numbers = [path for path, type_ in leaves if pa.types.is_float32(type_)]
    return pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        use_dictionary=[path for path, _ in leaves if path not in ("uri", "etag", *numbers)],
        use_byte_stream_split=numbers,
        write_statistics=["uri"],
        store_schema=False,
    )


def _leaf(field: pa.Field) -> tuple[str, pa.DataType]:
    """A column's path in Parquet and the type of its values."""
    if pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type):
        return f"{field.name}.list.element", field.type.value_type
    return field.name, field.type


def write_part(table_uri: str, rows: pa.Table | Iterable[pa.Table], *, status: str, stem: str, recipe_id: str) -> Part:
    """Write rows as a new part beside the log; nobody sees it until it is committed.

    Args:
        table_uri: the table.
        rows: at least one row, without the partition column; also in several tables of one schema.
        status: `ok` or `failed`.
        stem: where it came from, for people who look at the folder.
        recipe_id: the table's (`RecipeFile.table_id`).
    """
    data = encode_part(rows, recipe_id)
    digest = hashlib.sha256(data).hexdigest()
    path = f"status={status}/{stem}-{digest}.parquet"
    # Put if absent: a name that exists already holds these very bytes, as their hash is in it.
    open_store(table_uri).write(join(table_uri, path), data, if_absent=True)
    count = pq.read_metadata(io.BytesIO(data)).num_rows
    return Part(path=path, status=status, rows=count, size_bytes=len(data))


@contextmanager
def open_part(table_uri: str, path: str) -> Iterator[pq.ParquetFile]:
    """Open a part of a table for reading.

    Args:
        table_uri: the table.
        path: of the part, relative to the table.

    Raises:
        TableCorruptError: its bytes are damaged; also where that shows only as it is read.
        ObjectNotFoundError: the file is gone.
    """
    uri = join(table_uri, path)
    with open_store(table_uri).open(uri) as stream:
        try:
            yield pq.ParquetFile(stream)
        except (pa.ArrowException, OSError) as error:
            raise TableCorruptError(
                f"{uri} cannot be read ({first_line(error)}); `tlray verify` names every damaged file of the table: restore "
                "them, or extract to a new table"
            ) from error


def read_part(table_uri: str, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the rows of a part.

    Args:
        table_uri: the table.
        path: of the part, relative to the table.
        columns: only these; default all.
    """
    with open_part(table_uri, path) as file:
        return file.read(columns=None if columns is None else list(columns))


def stream_part(table_uri: str, path: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Read the rows of a part, a row group at a time, where a part is larger than memory allows.

    Args:
        table_uri: the table.
        path: of the part, relative to the table.
        columns: only these.
    """
    with open_part(table_uri, path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=list(columns))


def first_uri(table_uri: str, path: str) -> str:
    """The least URI of a part, read from the statistics in its footer; empty where it has none."""
    with open_part(table_uri, path) as file:
        metadata = file.metadata
    column = next(at for at in range(metadata.num_columns) if metadata.schema.column(at).path == "uri")
    groups = [metadata.row_group(number).column(column) for number in range(metadata.num_row_groups)]
    return min((group.statistics.min for group in groups if group.statistics and group.statistics.has_min_max), default="")


def rows_of(data: bytes) -> pa.Table:
    """Read the rows of a part whose bytes are in memory."""
    return pq.ParquetFile(io.BytesIO(data)).read()


def part_metadata(data: bytes) -> Mapping[bytes, bytes]:
    """Read the key-value metadata of a part whose bytes are in memory."""
    metadata: Mapping[bytes, bytes] = pq.read_metadata(io.BytesIO(data)).metadata or {}
    return metadata
