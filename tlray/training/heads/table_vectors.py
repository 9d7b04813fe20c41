"""The vectors of examples as heads take them: in memory where they fit, else streamed from the table's parts.

Shape legend: N examples, B examples of a batch, T rows of the table in the order of its parts, D length of a vector.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from tlray.errors import ObjectNotFoundError
from tlray.lake.table.parts import stream_part, vectors_of
from tlray.training.examples.table_rows import TableRows, read_vectors, vacuumed

BLOCK_ROWS = 8192
Batch = tuple[np.ndarray, np.ndarray]
"""positions_B (int64, of the examples) and features_BD (float32)."""


class Vectors(Protocol):
    """The vectors of examples in one column of a table.

    Attributes:
        dimensions: D.
        in_memory: whether a pass over them costs no reading.
    """

    dimensions: int
    in_memory: bool

    def blocks(self, wanted_N: np.ndarray) -> Iterator[Batch]:
        """All wanted examples once, always in the same order.

        Args:
            wanted_N: bool.
        """
        ...

    def batches(self, wanted_N: np.ndarray, batch_size: int, generator: np.random.Generator) -> Iterator[Batch]:
        """All wanted examples once, shuffled; the last batch may be smaller.

        Args:
            wanted_N: bool.
            batch_size: B.
            generator: of the order.
        """
        ...


class LoadedVectors:
    """Vectors in memory.

    Args:
        features_ND: float32.
    """

    in_memory = True

    def __init__(self, features_ND: np.ndarray) -> None:
        self.features_ND = features_ND
        self.dimensions = features_ND.shape[1]

    def blocks(self, wanted_N: np.ndarray) -> Iterator[Batch]:
        """All wanted examples once, in order of position."""
        positions = np.flatnonzero(wanted_N)
        for start in range(0, len(positions), BLOCK_ROWS):
            yield positions[start : start + BLOCK_ROWS], self.features_ND[positions[start : start + BLOCK_ROWS]]

    def batches(self, wanted_N: np.ndarray, batch_size: int, generator: np.random.Generator) -> Iterator[Batch]:
        """All wanted examples once, in an order that depends on the generator alone."""
        positions = generator.permutation(np.flatnonzero(wanted_N))
        for start in range(0, len(positions), batch_size):
            yield positions[start : start + batch_size], self.features_ND[positions[start : start + batch_size]]


class StreamedVectors:
    """Vectors that are read again in every pass.

    Args:
        rows: of the table.
        column: of embeddings.
        rows_N: int64, the row that each example is.
        memory_bytes: what the examples that are shuffled together may take.
    """

    in_memory = False

    def __init__(self, rows: TableRows, column: str, rows_N: np.ndarray, memory_bytes: int) -> None:
        self.dimensions = length_of(rows, column)
        self._table_uri, self._column, self._parts = rows.table.uri, column, rows.parts
        self._example_T = rows.example_of_place(rows_N)
        self._first_rows = np.cumsum([0, *(part.rows for part in rows.parts)])
        # Half of the memory holds rows that wait, the other half their shuffled copy.
        self._mixed_rows = max(1, memory_bytes // (2 * 4 * self.dimensions))

    def blocks(self, wanted_N: np.ndarray) -> Iterator[Batch]:
        """All wanted examples once, in the order of the table's parts."""
        return self._read(range(len(self._parts)), wanted_N)

    def batches(self, wanted_N: np.ndarray, batch_size: int, generator: np.random.Generator) -> Iterator[Batch]:
        """All wanted examples once: parts in random order, and as many of their rows mixed as memory allows."""
        waiting: list[Batch] = []
        for block in self._read(generator.permutation(len(self._parts)).tolist(), wanted_N):
            waiting.append(block)
            if sum(len(positions) for positions, _ in waiting) >= self._mixed_rows:
                mixed = _mixed(waiting, generator)
                whole = len(mixed[0]) // batch_size * batch_size
                yield from _cut(mixed, whole, batch_size)
                waiting = [(mixed[0][whole:], mixed[1][whole:])]
        if waiting:
            mixed = _mixed(waiting, generator)
            yield from _cut(mixed, len(mixed[0]), batch_size)

    def _read(self, order: Sequence[int], wanted_N: np.ndarray) -> Iterator[Batch]:
        for at in order:
            first = int(self._first_rows[at])
            try:
                for group in stream_part(self._table_uri, self._parts[at].path, [self._column]):
                    example_B = self._example_T[first : first + len(group)]
                    kept = np.flatnonzero((example_B >= 0) & wanted_N[example_B])
                    if len(kept):
                        yield example_B[kept], vectors_of(group[self._column].take(pa.array(kept)))
                    first += len(group)
            except ObjectNotFoundError as error:
                raise vacuumed(self._table_uri, self._parts[at]) from error


def _mixed(waiting: Sequence[Batch], generator: np.random.Generator) -> Batch:
    positions, features_BD = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
    order = generator.permutation(len(positions))
    return positions[order], features_BD[order]


def _cut(batch: Batch, count: int, batch_size: int) -> Iterator[Batch]:
    for start in range(0, count, batch_size):
        end = min(start + batch_size, count)
        yield batch[0][start:end], batch[1][start:end]


def length_of(rows: TableRows, column: str) -> int:
    """Floats in one vector of a column."""
    return math.prod(rows.table.recipe_file.shapes[column])


def fits(rows: TableRows, columns: Sequence[str], memory_bytes: int) -> bool:
    """Whether the vectors of some columns fit in memory, with a copy of them, which solvers make."""
    return 2 * 4 * len(rows.items) * sum(length_of(rows, column) for column in columns) <= memory_bytes


def vectors_by_column(rows: TableRows, columns: Sequence[str], rows_N: np.ndarray, memory_bytes: int) -> dict[str, Vectors]:
    """The vectors of examples in some columns of a table: in memory where all of them fit, else streamed.

    Args:
        rows: of the table.
        columns: of embeddings.
        rows_N: int64, the row that each example is.
        memory_bytes: what the vectors, and what is computed of them, may take.

    Raises:
        TableError: a part is gone: the table moved on and was vacuumed.
    """
    if fits(rows, columns, memory_bytes):
        return {column: LoadedVectors(load_vectors(rows, column, rows_N)) for column in columns}
    return {column: StreamedVectors(rows, column, rows_N, memory_bytes // 2) for column in columns}


def load_vectors(rows: TableRows, column: str, rows_N: np.ndarray) -> np.ndarray:
    """features_ND, float32, of examples in one column."""
    features_ND = np.empty((len(rows_N), length_of(rows, column)), np.float32)
    read_vectors(rows, column, rows_N, features_ND)
    return features_ND
