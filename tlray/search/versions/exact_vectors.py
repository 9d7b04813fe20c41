"""Where an index's exact vectors are: inside its FAISS index, in a file beside it, or in its table.

Ids are nodes: rows of the same vector share one (`tlray.search.rows.row_table`).

Shape legend: B queries, C candidates, N vectors, M ids asked for, D dimensions.
"""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from tlray.errors import TableCorruptError
from tlray.search.neighbours.exact import Metric, gathered_nearness, nearness_at, prepared
from tlray.search.neighbours.faiss_index import BLOCK_ROWS, FaissIndex
from tlray.search.rows.from_table import read_row_vectors
from tlray.search.rows.row_table import RowTable
from tlray.search.versions.changes import VectorChanges


def save_vectors(path: Path, blocks: Iterable[np.ndarray], shape: tuple[int, int]) -> None:
    """Keep prepared vectors as a `.npy` file of float32, which FAISS compares where it lies once it is memory-mapped.

    Args:
        path: of the file.
        blocks: the vectors, in order.
        shape: of all of them.

    Raises:
        TableCorruptError: the blocks are not of that shape in all.
    """
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
    rows = 0
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block_BD in blocks:
            if block_BD.shape[1:] != shape[1:]:
                raise TableCorruptError(f"vectors of {block_BD.shape[1:]} floats, expected {shape[1:]}; run `tlray verify`")
            np.asarray(block_BD, np.float32).tofile(file)
            rows += len(block_BD)
    if rows != shape[0]:
        raise TableCorruptError(f"the table's parts have {rows} rows, its log says {shape[0]}; run `tlray verify`")


@dataclass(frozen=True)
class ArrayVectors:
    """The exact vectors of a fresh index, whose ids are positions.

    Attributes:
        vectors_ND: prepared, float32; perhaps a memory-mapped file.
        metric: what "near" means.
    """

    vectors_ND: np.ndarray
    metric: Metric

    def take(self, ids_M: np.ndarray) -> np.ndarray:
        """Vectors of rows by their ids; see `ExactVectors.take`."""
        vectors_MD: np.ndarray = self.vectors_ND[ids_M]
        return vectors_MD

    def nearness(self, queries_BD: np.ndarray, ids_BC: np.ndarray) -> np.ndarray:
        """How near rows are to queries; see `ExactVectors.nearness`."""
        return nearness_at(queries_BD, self.vectors_ND, ids_BC, self.metric)


class StoredVectors:
    """Exact vectors that an index keeps beside its codes: those of the rows in the FAISS file, and those added since.

    Args:
        base_ND: the vectors file, memory-mapped; prepared.
        rows: the live rows.
        changes: since both files were written.
        metric: of the index.
    """

    def __init__(self, base_ND: np.ndarray, rows: RowTable, changes: VectorChanges, metric: Metric) -> None:
        self._base_ND, self._changes, self._metric = base_ND, changes, metric
        self._added_ND = prepared(changes.added_ND, metric)
        # What is live and what went is what was there.
        live = rows.nodes_U[: np.searchsorted(rows.nodes_U, changes.first_id)]
        base_ids = np.sort(np.concatenate([live, changes.removed]), kind="stable")
        self.is_whole = len(base_ids) == len(base_ND)
        self._position_of: np.ndarray | None = None
        if len(base_ids) != changes.first_id:  # else an id is its position
            self._position_of = np.full(changes.first_id, -1, np.int64)
            self._position_of[base_ids] = np.arange(len(base_ids))

    def with_changes(self, rows: RowTable, changes: VectorChanges) -> "StoredVectors":
        """The same file with other changes since."""
        return StoredVectors(self._base_ND, rows, changes, self._metric)

    def _positions(self, ids: np.ndarray) -> np.ndarray:
        positions: np.ndarray = ids if self._position_of is None else self._position_of[ids]
        return positions

    def take(self, ids_M: np.ndarray) -> np.ndarray:
        """Vectors of rows by their ids; see `ExactVectors.take`."""
        vectors_MD = np.empty((len(ids_M), self._base_ND.shape[1]), np.float32)
        is_new = ids_M >= self._changes.first_id
        vectors_MD[is_new] = self._added_ND[ids_M[is_new] - self._changes.first_id]
        vectors_MD[~is_new] = self._base_ND[self._positions(ids_M[~is_new])]
        return vectors_MD

    def nearness(self, queries_BD: np.ndarray, ids_BC: np.ndarray) -> np.ndarray:
        """How near rows are to queries; see `ExactVectors.nearness`."""
        first_id, metric = self._changes.first_id, self._metric
        if not len(self._added_ND):
            at_BC = ids_BC if self._position_of is None else np.where(ids_BC < 0, -1, self._positions(np.maximum(ids_BC, 0)))
            return nearness_at(queries_BD, self._base_ND, at_BC, metric)
        is_old = (ids_BC >= 0) & (ids_BC < first_id)
        at_BC = np.where(is_old, self._positions(np.where(is_old, ids_BC, 0)), -1)
        old_BC = nearness_at(queries_BD, self._base_ND, at_BC, metric)
        nearest_BC: np.ndarray = np.maximum(
            old_BC, nearness_at(queries_BD, self._added_ND, np.maximum(ids_BC - first_id, -1), metric)
        )
        return nearest_BC


class IndexVectors:
    """The exact vectors of an index's live rows.

    Args:
        index: the FAISS index.
        rows: its live rows.
        stored: the vectors file, where there is one.
        table_uri: where the vectors are otherwise.
        column: of the table.
    """

    def __init__(self, index: FaissIndex, rows: RowTable, stored: StoredVectors | None, table_uri: str, column: str) -> None:
        self._index, self._rows, self._stored = index, rows, stored
        self._table_uri, self._column = table_uri, column
        self._lock = threading.Lock()

    def take(self, ids_M: np.ndarray) -> np.ndarray:
        """Vectors of rows by their ids; see `ExactVectors.take`."""
        if self._index.kind.is_exact:
            return self._index.vectors(ids_M)
        if self._stored is not None:
            return self._stored.take(ids_M)
        rows = self._rows.table.take(pa.array(self._rows.first_positions(ids_M)))
        with self._lock:  # a part at a time in memory, whoever asks
            return prepared(read_row_vectors(self._table_uri, self._column, rows), self._index.metric)

    def nearness(self, queries_BD: np.ndarray, ids_BC: np.ndarray) -> np.ndarray:
        """How near rows are to queries; see `ExactVectors.nearness`."""
        kind = self._index.kind
        if kind.is_exact and not kind.removes:
            return self._index.nearness(queries_BD, ids_BC)
        if self._stored is not None and not kind.is_exact:
            return self._stored.nearness(queries_BD, ids_BC)
        return gathered_nearness(self.take, queries_BD, ids_BC, self._index.metric)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All live ids and their prepared vectors."""
        if self._index.kind.is_exact:
            for ids_B, vectors_BD in self._index.blocks():
                alive_B = self._rows.are_live(ids_B)
                yield (ids_B, vectors_BD) if alive_B.all() else (ids_B[alive_B], vectors_BD[alive_B])
            return
        nodes_U = self._rows.nodes_U  # a tensor
        if self._stored is not None:
            for start in range(0, len(nodes_U), BLOCK_ROWS):
                yield nodes_U[start : start + BLOCK_ROWS], self.take(nodes_U[start : start + BLOCK_ROWS])
            return
        first = pa.array(self._rows.first_positions(nodes_U))
        parts = np.asarray(self._rows.table["part"].take(first).to_pylist(), object)
        for part in dict.fromkeys(parts.tolist()):
            yield nodes_U[parts == part], self.take(nodes_U[parts == part])
