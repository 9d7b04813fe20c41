"""Where an index's exact vectors are: inside it, in a file beside it, or in its table; and reading them out of the table.

Shape legend: N rows, M ids asked for, D dimensions.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from tlray.errors import ObjectNotFoundError, TableCorruptError, TableError
from tlray.lake.table.parts import READ_THREADS, read_part, vectors_of
from tlray.search.neighbours.brute import nearness_at
from tlray.search.neighbours.exact import gathered_nearness
from tlray.search.neighbours.factory import Metric
from tlray.search.neighbours.faiss_index import BLOCK_ROWS, Engine
from tlray.search.neighbours.row_table import Rows
from tlray.search.versions.changes import StoredVectors

_IN_MEMORY_FRACTION = 0.5
Blocks = Iterator[tuple[np.ndarray, np.ndarray]]


def read_features(
    table_uri: str,
    column: str,
    parts: Sequence[tuple[str, int]],
    engine: Engine,
    scratch: Path,
    memory_bytes: int,
) -> np.ndarray:
    """All vectors of some parts, in order, as `Engine.prepared` gives them.

    Args:
        table_uri: the table.
        column: the embedding column.
        parts: paths and row counts.
        engine: what they are read for.
        scratch: a folder for a file that stands in for memory where the vectors are too many.
        memory_bytes: what they may take in memory.

    Returns:
        vectors_ND, float32; perhaps a memory-mapped file in `scratch`.
    """
    shape = (sum(rows for _, rows in parts), engine.dimensions)
    vectors_ND: np.ndarray
    if shape[0] * shape[1] * 4 <= _IN_MEMORY_FRACTION * memory_bytes:
        vectors_ND = np.empty(shape, np.float32)
    else:
        vectors_ND = np.lib.format.open_memmap(scratch / "features.npy", "w+", np.float32, shape)
    starts = np.cumsum([0, *(rows for _, rows in parts)]).tolist()

    def read(path: str, start: int, end: int) -> None:
        # Straight to where they belong: memory that is new costs more than the copy.
        engine.prepare(vectors_of(read_part(table_uri, path, [column])[column], vectors_ND[start:end]))

    with ThreadPoolExecutor(READ_THREADS) as threads:
        list(threads.map(read, [path for path, _ in parts], starts[:-1], starts[1:]))
    return vectors_ND


def read_features_of(table_uri: str, path: str, column: str) -> np.ndarray:
    """All vectors of one part, as the table has them."""
    return vectors_of(read_part(table_uri, path, [column])[column])


def read_rows_features(table_uri: str, column: str, rows: pa.Table) -> np.ndarray:
    """Vectors of some rows of a table, in the rows' order; only their parts are read.

    Args:
        table_uri: the table.
        column: the embedding column.
        rows: with `part` and `row`.

    Raises:
        TableError: a part is gone: the table moved on and was vacuumed.
    """
    at = rows["row"].to_numpy()
    names = np.asarray(rows["part"].to_pylist(), object)
    features: np.ndarray | None = None
    for part in dict.fromkeys(names.tolist()):
        wanted = np.flatnonzero(names == part)
        try:
            lists = read_part(table_uri, part, [column])[column]
        except ObjectNotFoundError as error:
            raise TableError(
                f"{table_uri} has no part {part} any more: the table moved on and was vacuumed; run `tlray index` again"
            ) from error
        is_whole = np.array_equal(at[wanted], np.arange(len(lists)))  # as parts of new images are
        found_BD = vectors_of(lists if is_whole else lists.take(pa.array(at[wanted])))
        if features is None:
            features = np.empty((len(rows), found_BD.shape[1]), np.float32)
        features[wanted] = found_BD
    return np.empty((0, 0), np.float32) if features is None else features


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


def in_blocks(vectors_ND: np.ndarray) -> Iterator[np.ndarray]:
    """Slices that bound what is handled at once."""
    for start in range(0, len(vectors_ND), BLOCK_ROWS):
        yield vectors_ND[start : start + BLOCK_ROWS]


@contextmanager
def leaving_out(vectors_ND: np.ndarray, ids: np.ndarray) -> Iterator[np.ndarray]:
    """All rows but some, in order and without a copy: the others move up within the array, and back at the end.

    Args:
        vectors_ND: not to be read by anybody else meanwhile.
        ids: of the rows that are left out, in order.
    """
    left_out_BD = vectors_ND[ids]
    pieces = list(enumerate(pairwise([*ids.tolist(), len(vectors_ND)]), 1))
    for by, (before, end) in pieces:
        vectors_ND[before + 1 - by : end - by] = vectors_ND[before + 1 : end]
    try:
        yield vectors_ND[: len(vectors_ND) - len(ids)]
    finally:
        for by, (before, end) in reversed(pieces):
            vectors_ND[before + 1 : end] = vectors_ND[before + 1 - by : end - by]
        vectors_ND[ids] = left_out_BD


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
        """See `Vectors.take`."""
        vectors_MD: np.ndarray = self.vectors_ND[ids_M]
        return vectors_MD

    def nearness(self, queries_BD: np.ndarray, ids_BC: np.ndarray) -> np.ndarray:
        """See `Vectors.nearness`."""
        return nearness_at(queries_BD, self.vectors_ND, ids_BC, self.metric)


class ExactVectors:
    """The exact vectors of an index's live rows.

    Args:
        engine: the index.
        rows: its live rows.
        stored: the vectors file, where there is one.
        table_uri: where the vectors are otherwise.
        column: of the table.
    """

    def __init__(self, engine: Engine, rows: Rows, stored: StoredVectors | None, table_uri: str, column: str) -> None:
        self._engine, self._rows, self._stored = engine, rows, stored
        self._table_uri, self._column = table_uri, column
        self._lock = threading.Lock()

    def take(self, ids_M: np.ndarray) -> np.ndarray:
        """See `Vectors.take`."""
        if self._engine.is_exact:
            return self._engine.vectors(ids_M)
        if self._stored is not None:
            return self._stored.take(ids_M)
        rows = self._rows.table.take(pa.array(self._rows.positions(ids_M)))
        with self._lock:  # a part at a time in memory, whoever asks
            return self._engine.prepared(read_rows_features(self._table_uri, self._column, rows))

    def nearness(self, queries_BD: np.ndarray, ids_BC: np.ndarray) -> np.ndarray:
        """See `Vectors.nearness`."""
        if self._stored is not None and not self._engine.is_exact:
            return self._stored.nearness(queries_BD, ids_BC)
        return gathered_nearness(self.take, queries_BD, ids_BC, self._engine.metric)

    def blocks(self) -> Blocks:
        """All live ids and their vectors."""
        if self._engine.is_exact:
            for ids_B, vectors_BD in self._engine.blocks():
                alive_B = self._rows.positions(ids_B) >= 0
                yield (ids_B, vectors_BD) if alive_B.all() else (ids_B[alive_B], vectors_BD[alive_B])
            return
        if self._stored is not None:
            for start in range(0, len(self._rows), BLOCK_ROWS):
                ids_B = self._rows.ids_N[start : start + BLOCK_ROWS]
                yield ids_B, self.take(ids_B)
            return
        parts = np.asarray(self._rows.table["part"].to_pylist(), object)
        for part in dict.fromkeys(parts.tolist()):
            ids_B = self._rows.ids_N[parts == part]
            yield ids_B, self.take(ids_B)
