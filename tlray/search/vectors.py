"""Where an index's exact vectors are: inside it, in a file beside it, or in its table; and reading them out of the table.

Shape legend: N rows, M ids asked for, D dimensions.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from tlray.errors import ObjectNotFoundError, TableError
from tlray.lake.parts import read_part, vectors_of
from tlray.search.engine import BLOCK_ROWS, Engine
from tlray.search.retrieve import Take
from tlray.search.rows import Rows

_IN_MEMORY_FRACTION = 0.5
Blocks = Iterator[tuple[np.ndarray, np.ndarray]]


def read_features(
    table_uri: str, column: str, parts: Sequence[tuple[str, int]], dimensions: int, scratch: Path, memory_bytes: int
) -> np.ndarray:
    """All vectors of some parts, in order.

    Args:
        table_uri: the table.
        column: the embedding column.
        parts: paths and row counts.
        dimensions: of one vector.
        scratch: a folder for a file that stands in for memory where the vectors are too many.
        memory_bytes: what they may take in memory.

    Returns:
        features_ND, float32; perhaps a memory-mapped file in `scratch`.
    """
    shape = (sum(rows for _, rows in parts), dimensions)
    features_ND: np.ndarray
    if shape[0] * dimensions * 4 <= _IN_MEMORY_FRACTION * memory_bytes:
        features_ND = np.empty(shape, np.float32)
    else:
        features_ND = np.lib.format.open_memmap(scratch / "features.npy", "w+", np.float32, shape)
    start = 0
    for path, rows in parts:
        features_ND[start : start + rows] = vectors_of(read_part(table_uri, path, [column])[column])
        start += rows
    return features_ND


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
            found_BD = vectors_of(read_part(table_uri, part, [column])[column].take(pa.array(at[wanted])))
        except ObjectNotFoundError as error:
            raise TableError(
                f"{table_uri} has no part {part} any more: the table moved on and was vacuumed; run `tlray index` again"
            ) from error
        if features is None:
            features = np.empty((len(rows), found_BD.shape[1]), np.float32)
        features[wanted] = found_BD
    return np.empty((0, 0), np.float32) if features is None else features


def save_vectors(path: Path, blocks: Callable[[], Iterator[np.ndarray]], shape: tuple[int, int]) -> None:
    """Keep vectors as a `.npy` file: float16 where that loses nothing (as with storage half), else float32.

    Args:
        path: of the file.
        blocks: the vectors, in order; called twice.
        shape: of all of them.
    """
    with np.errstate(over="ignore"):
        half = all(np.array_equal(block_BD.astype(np.float16).astype(np.float32), block_BD) for block_BD in blocks())
    file_ND = np.lib.format.open_memmap(path, "w+", np.float16 if half else np.float32, shape)
    start = 0
    for block_BD in blocks():
        file_ND[start : start + len(block_BD)] = block_BD
        start += len(block_BD)
    file_ND.flush()


def in_blocks(features_ND: np.ndarray) -> Iterator[np.ndarray]:
    """Slices that bound what a copy takes."""
    for start in range(0, len(features_ND), BLOCK_ROWS):
        yield np.asarray(features_ND[start : start + BLOCK_ROWS], np.float32)


class ExactVectors:
    """The exact vectors of an index's live rows.

    Args:
        engine: the index.
        rows: its live rows.
        stored_ND: the vectors file, in the rows' order, where there is one.
        table_uri: where the vectors are otherwise.
        column: of the table.
    """

    def __init__(self, engine: Engine, rows: Rows, stored_ND: np.ndarray | None, table_uri: str, column: str) -> None:
        self._engine, self._rows, self._stored_ND = engine, rows, stored_ND
        self._table_uri, self._column = table_uri, column
        self._lock = threading.Lock()

    def take(self, ids_M: np.ndarray) -> np.ndarray:
        """Vectors of live ids, as `Engine.prepared` gives them."""
        if self._engine.is_exact:
            return self._engine.vectors(ids_M)
        at_M = self._rows.positions(ids_M)
        if self._stored_ND is not None:
            return self._engine.prepared(self._stored_ND[at_M])
        with self._lock:  # a part at a time in memory, whoever asks
            return self._engine.prepared(
                read_rows_features(self._table_uri, self._column, self._rows.table.take(pa.array(at_M)))
            )

    def blocks(self) -> Blocks:
        """All live ids and their vectors."""
        if self._engine.is_exact:
            for ids_B, vectors_BD in self._engine.blocks():
                alive_B = self._rows.positions(ids_B) >= 0
                yield (ids_B, vectors_BD) if alive_B.all() else (ids_B[alive_B], vectors_BD[alive_B])
            return
        if self._stored_ND is not None:
            for start in range(0, len(self._rows), BLOCK_ROWS):
                block = slice(start, start + BLOCK_ROWS)
                yield self._rows.ids_N[block], self._engine.prepared(self._stored_ND[block])
            return
        parts = np.asarray(self._rows.table["part"].to_pylist(), object)
        for part in dict.fromkeys(parts.tolist()):
            ids_B = self._rows.ids_N[parts == part]
            yield ids_B, self.take(ids_B)


def take_from(engine: Engine, features_ND: np.ndarray) -> Take:
    """Vectors of a fresh index, whose ids are positions."""
    return lambda ids_M: engine.prepared(features_ND[ids_M])
