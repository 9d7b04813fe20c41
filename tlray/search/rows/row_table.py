"""What an index's ids mean: a small Parquet file beside the FAISS file, and look-ups in it.

Two numbers stand beside each row. Its *id* is its own, given once. Its *node* is what FAISS knows its vector by; rows of the
same vector have the same one (`tlray.search.rows.copies`).

Shape legend: N live rows, M ids or nodes asked for, U live nodes.
"""

import io
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tlray.errors import QueryError
from tlray.search.rows.copies import NO_NODE
from tlray.search.rows.row_columns import RowColumns
from tlray.where.condition import Condition, read_condition

PLACED_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string()),
        pa.field("label", pa.string()),
        pa.field("part", pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
    ]
)
"""Rows of a table and where they are in it: `part` and `row` say where the vector is."""

ROWS_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        *PLACED_SCHEMA,
        pa.field("node", pa.int64(), nullable=False),
        pa.field("key", pa.uint64()),
    ]
)
"""Rows of an index. `key` is `keys_of` the prepared vector; null in indexes of version 0.1, which had a node for each row."""


class RowTable:
    """The live rows of an index.

    Args:
        table: ROWS_SCHEMA, sorted by id.
        columns: that travelled into the table, one row for each of these.
    """

    def __init__(self, table: pa.Table, columns: RowColumns | None = None) -> None:
        self.table = table.combine_chunks()
        self.columns = columns
        self.ids_N: np.ndarray = self.table["id"].to_numpy()
        self.nodes_N: np.ndarray = self.table["node"].to_numpy()

    @classmethod
    def from_bytes(cls, data: bytes) -> "RowTable":
        """Read the side file, of this version or of 0.1."""
        table = pq.ParquetFile(io.BytesIO(data)).read()
        if "node" not in table.schema.names:
            table = with_ids(table.drop_columns(["id"]), table["id"], table["id"], pa.nulls(len(table), pa.uint64()))
        return cls(table.cast(ROWS_SCHEMA))

    def to_bytes(self) -> bytes:
        """The side file: zstd Parquet that any engine reads."""
        sink = io.BytesIO()
        encodings = {"node": "DELTA_BINARY_PACKED", "id": "DELTA_BINARY_PACKED"}
        pq.write_table(self.table, sink, compression="zstd", use_dictionary=["label", "part"], column_encoding=encodings)
        return sink.getvalue()

    def __len__(self) -> int:
        return len(self.ids_N)

    def positions(self, ids_M: np.ndarray) -> np.ndarray:
        """Positions of ids in `table`; -1 for those that are not live."""
        return _positions_in(self.ids_N, ids_M)

    @cached_property
    def has_copies(self) -> bool:
        """Whether some rows share a node, or have none, or are in another order than their nodes."""
        return bool(len(self) and (self.nodes_N[0] < 0 or (np.diff(self.nodes_N) <= 0).any()))

    @cached_property
    def _firsts(self) -> tuple[np.ndarray, np.ndarray]:
        """The live nodes, ascending, and the position of the first row of each."""
        if not self.has_copies:
            return self.nodes_N, np.arange(len(self))
        nodes, first = np.unique(self.nodes_N, return_index=True)
        skipped = int(np.searchsorted(nodes, 0))
        return nodes[skipped:], first[skipped:]

    @property
    def nodes_U(self) -> np.ndarray:  # noqa: N802  # a tensor
        """The nodes that live rows belong to, ascending."""
        return self._firsts[0]

    def are_live(self, nodes_M: np.ndarray) -> np.ndarray:
        """For each node whether a live row has it."""
        is_live_M: np.ndarray = _positions_in(self.nodes_U, nodes_M) >= 0
        return is_live_M

    def first_positions(self, nodes_M: np.ndarray) -> np.ndarray:
        """Position of the first row of each node; -1 where the node is not live."""
        nodes_U, first_U = self._firsts
        at_M = _positions_in(nodes_U, nodes_M)
        return np.where(at_M < 0, -1, first_U[at_M]) if len(first_U) else at_M

    @cached_property
    def zero_positions(self) -> np.ndarray:
        """Positions of the rows that are in no node: all-zero vectors, where the metric is cosine."""
        return np.flatnonzero(self.nodes_N == NO_NODE)

    def with_zeros_apart(self, nodes_M: np.ndarray) -> "RowTable":
        """These rows with some nodes' rows in none.

        Args:
            nodes_M: of all-zero vectors.
        """
        nodes_N = np.where(np.isin(self.nodes_N, nodes_M), NO_NODE, self.nodes_N)
        at = self.table.schema.get_field_index("node")
        return RowTable(self.table.set_column(at, "node", pa.array(nodes_N)), self.columns)

    @cached_property
    def labels(self) -> dict[str, int]:
        """How many rows each label has, the most frequent first."""
        counts = pc.value_counts(self.table["label"].drop_null()).to_pylist()
        counts.sort(key=lambda one: (-one["counts"], one["values"]))
        return {str(one["values"]): int(one["counts"]) for one in counts}

    def uri(self, position: int) -> str:
        """The URI of the image of one row."""
        return str(self.table["uri"][position].as_py())

    def label(self, position: int) -> str | None:
        """The label of the image of one row."""
        label = self.table["label"][position].as_py()
        return None if label is None else str(label)

    def position_of_uri(self, uri: str) -> int:
        """The position of a URI's row.

        Raises:
            QueryError: the index has no such image.
        """
        found = pc.index(self.table["uri"], pa.scalar(uri, pa.string())).as_py()
        if found < 0:
            raise QueryError(f"{uri} is not in the index; expected the URI of an image with an embedding in its table")
        return int(found)

    def positions_of_label(self, label: str) -> np.ndarray:
        """The positions of a label's rows.

        Raises:
            QueryError: no row has it.
        """
        positions = np.flatnonzero(self.mask(labels=(label,)))
        if not len(positions):
            there = ", ".join(map(repr, list(self.labels)[:5]))
            raise QueryError(
                f"no row has the label {label!r}; "
                + (f"the most frequent ones are {there}" if there else "the table was made without labels (source.labels)")
            )
        return positions

    @property
    def fields(self) -> list[pa.Field]:
        """The columns that a condition may name."""
        own = [self.table.schema.field(name) for name in ASKED]
        return own if self.columns is None else [*own, *self.columns.fields]

    def mask(self, labels: Sequence[str] = (), prefixes: Sequence[str] = (), where: str = "") -> np.ndarray:
        """For each row whether it has one of the labels and its URI one of the prefixes; none given means any.

        Both are compared character by character: a comma, a bracket or a star in one has no meaning.

        Args:
            labels: see above.
            prefixes: likewise.
            where: a condition that it must fulfil as well (`tlray.where.condition`); empty for none.

        Returns:
            bool of length N.

        Raises:
            WhereError: the condition cannot be read, or names a column that is not there.
        """
        mask_N = np.ones(len(self), bool)
        if labels:
            is_in = pc.is_in(self.table["label"], value_set=pa.array(labels, pa.string()))
            mask_N &= is_in.to_numpy(zero_copy_only=False)
        if prefixes:
            any_N = np.zeros(len(self), bool)
            for prefix in prefixes:
                any_N |= pc.starts_with(self.table["uri"], prefix).to_numpy(zero_copy_only=False)
            mask_N &= any_N
        if where:
            mask_N &= self._fulfil(read_condition(where, self.fields, "the index"))
        return mask_N

    def _fulfil(self, condition: Condition) -> np.ndarray:
        """For each row whether it fulfils a condition; the columns that it asks are read a block at a time."""
        own = [name for name in condition.columns if name in ASKED]
        others = [name for name in condition.columns if name not in ASKED]
        if self.columns is None or not others:
            return condition.mask(self.table.select(own or ["uri"]))
        masks, start = [np.empty(0, bool)], 0
        for block in self.columns.blocks(others):
            for name in own:
                block = block.append_column(name, self.table[name].slice(start, len(block)))
            masks.append(condition.mask(block))
            start += len(block)
        return np.concatenate(masks)


def _positions_in(sorted_N: np.ndarray, values_M: np.ndarray) -> np.ndarray:
    if not len(sorted_N):
        return np.full(len(values_M), -1, np.int64)
    at_M = np.searchsorted(sorted_N, values_M)
    at_M[at_M == len(sorted_N)] = 0
    return np.where(sorted_N[at_M] == values_M, at_M, -1)


def with_ids(
    rows: pa.Table, ids: np.ndarray | pa.ChunkedArray, nodes: np.ndarray | pa.ChunkedArray, keys: np.ndarray | pa.Array
) -> pa.Table:
    """ROWS_SCHEMA of rows of PLACED_SCHEMA, their ids, nodes and keys."""
    return pa.table([ids, *rows.columns, nodes, keys], schema=ROWS_SCHEMA)


ASKED = ("uri", "etag", "label")
"""The columns of an index's own that a condition may name."""
