"""What an index's ids mean: a small Parquet file beside the FAISS file, and look-ups in it.

Shape legend: N live rows, M ids asked for.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tlray.errors import QueryError
from tlray.lake.table.parts import READ_THREADS, read_part
from tlray.lake.table.table import Table
from tlray.search.rows.selection import Filter

ROWS_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string()),
        pa.field("label", pa.string()),
        pa.field("part", pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
    ]
)
"""`part` and `row` say where in the table the vector is."""


class RowTable:
    """The live rows of an index: what each of its ids means.

    Args:
        table: ROWS_SCHEMA, sorted by id.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table.combine_chunks()
        self.ids_N: np.ndarray = self.table["id"].to_numpy()

    @classmethod
    def from_bytes(cls, data: bytes) -> "RowTable":
        """Read the side file."""
        return cls(pq.ParquetFile(io.BytesIO(data)).read())

    def to_bytes(self) -> bytes:
        """The side file: zstd Parquet that any engine reads."""
        sink = io.BytesIO()
        pq.write_table(self.table, sink, compression="zstd", use_dictionary=["label", "part"])
        return sink.getvalue()

    def __len__(self) -> int:
        return len(self.ids_N)

    @cached_property
    def labels(self) -> dict[str, int]:
        """How many rows each label has, the most frequent first."""
        counts = pc.value_counts(self.table["label"].drop_null()).to_pylist()
        return {
            str(one["values"]): int(one["counts"]) for one in sorted(counts, key=lambda one: (-one["counts"], one["values"]))
        }

    def positions(self, ids_M: np.ndarray) -> np.ndarray:
        """Where ids are in `table`; -1 for those that are not live."""
        at_M = np.searchsorted(self.ids_N, ids_M)
        at_M[at_M == len(self)] = 0
        if not len(self):
            return np.full(len(ids_M), -1, np.int64)
        return np.where(self.ids_N[at_M] == ids_M, at_M, -1)

    def uri(self, position: int) -> str:
        """URI of one row."""
        return str(self.table["uri"][position].as_py())

    def label(self, position: int) -> str | None:
        """Label of one row."""
        label = self.table["label"][position].as_py()
        return None if label is None else str(label)

    @cached_property
    def _uris(self) -> pa.Array:
        return self.table["uri"].combine_chunks()

    def position_of_uri(self, uri: str) -> int:
        """Where a URI's row is.

        Raises:
            QueryError: the index has no such image.
        """
        found = pc.index(self._uris, pa.scalar(uri, pa.string())).as_py()
        if found < 0:
            raise QueryError(f"{uri} is not in the index; expected the URI of an image with an embedding in its table")
        return int(found)

    def positions_of_label(self, label: str) -> np.ndarray:
        """Where a label's rows are.

        Raises:
            QueryError: no row has it.
        """
        positions = np.flatnonzero(self.mask(Filter(labels=(label,))))
        if not len(positions):
            raise QueryError(f"no row has the label {label!r}; the most frequent ones are {list(self.labels)[:5]}")
        return positions

    def mask(self, where: Filter) -> np.ndarray:
        """For each row whether the filter lets it through; bool of length N."""
        mask_N = np.ones(len(self), bool)
        if where.labels:
            is_in = pc.is_in(self.table["label"], value_set=pa.array(where.labels, pa.string()))
            mask_N &= is_in.to_numpy(zero_copy_only=False)
        if where.prefixes:
            any_N = np.zeros(len(self), bool)
            for prefix in where.prefixes:
                any_N |= pc.starts_with(self.table["uri"], prefix).to_numpy(zero_copy_only=False)
            mask_N &= any_N
        return mask_N


def read_rows(table: Table, paths: Sequence[str]) -> pa.Table:
    """URI, etag and label of all rows of some parts, and where they are; no vectors.

    Returns:
        ROWS_SCHEMA without `id`.
    """
    schema = ROWS_SCHEMA.remove(0)

    def read(path: str) -> pa.Table:
        rows = read_part(table.uri, path, ["uri", "etag", "label"])
        rows = rows.append_column(ROWS_SCHEMA.field("part"), pa.repeat(pa.scalar(path), len(rows)))
        return rows.append_column(ROWS_SCHEMA.field("row"), pa.array(np.arange(len(rows), dtype=np.int32))).cast(schema)

    with ThreadPoolExecutor(READ_THREADS) as threads:
        return pa.concat_tables([schema.empty_table(), *threads.map(read, paths)])


def with_ids(rows: pa.Table, ids: np.ndarray) -> pa.Table:
    """Rows with their ids as the first column."""
    return rows.add_column(0, ROWS_SCHEMA.field("id"), pa.array(ids, pa.int64()))
