"""The vectors of a table: in memory where they fit, else streamed from its parts.

Shape legend: N rows of the table, B rows of a batch, D length of a vector.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from tlray.errors import ExamplesError, ObjectNotFoundError, TableError
from tlray.lake.table.parts import Part, read_part, stream_part, vectors_of
from tlray.lake.table.table import Table

BLOCK_ROWS = 8192
Batch = tuple[np.ndarray, np.ndarray]
"""rows_B (int64, positions in the table's rows) and features_BD (float32)."""


class Vectors(Protocol):
    """Vectors of one column, by the positions of their rows.

    Attributes:
        dimensions: D.
        in_memory: whether a pass over them costs no reading.
    """

    dimensions: int
    in_memory: bool

    def blocks(self, wanted_N: np.ndarray) -> Iterator[Batch]:
        """All wanted rows once, in order.

        Args:
            wanted_N: bool.
        """
        ...

    def batches(self, wanted_N: np.ndarray, batch_size: int, generator: np.random.Generator) -> Iterator[Batch]:
        """All wanted rows once, shuffled; the last batch may be smaller.

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
        """All wanted rows once, in order."""
        rows = np.flatnonzero(wanted_N)
        for start in range(0, len(rows), BLOCK_ROWS):
            yield rows[start : start + BLOCK_ROWS], self.features_ND[rows[start : start + BLOCK_ROWS]]

    def batches(self, wanted_N: np.ndarray, batch_size: int, generator: np.random.Generator) -> Iterator[Batch]:
        """All wanted rows once, in an order that depends on the generator alone."""
        rows = generator.permutation(np.flatnonzero(wanted_N))
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size], self.features_ND[rows[start : start + batch_size]]


class StreamedVectors:
    """Vectors that are read again in every pass.

    Args:
        table_uri: the table.
        column: the embedding column.
        parts: in the order of the rows.
        dimensions: D.
        memory_bytes: what the rows that are mixed at a time may take.
    """

    in_memory = False

    def __init__(self, table_uri: str, column: str, parts: Sequence[Part], dimensions: int, memory_bytes: int) -> None:
        self.dimensions = dimensions
        self._table_uri, self._column, self._parts = table_uri, column, parts
        self._first_rows = np.cumsum([0, *(part.rows for part in parts)])
        # Half of the memory holds rows that wait, the other half their shuffled copy.
        self._mixed_rows = max(1, memory_bytes // (2 * 4 * dimensions))

    def blocks(self, wanted_N: np.ndarray) -> Iterator[Batch]:
        """All wanted rows once, in order."""
        return self._read(range(len(self._parts)), wanted_N)

    def batches(self, wanted_N: np.ndarray, batch_size: int, generator: np.random.Generator) -> Iterator[Batch]:
        """All wanted rows once: parts in random order, and as many of their rows mixed as memory allows."""
        waiting: list[Batch] = []
        for block in self._read(generator.permutation(len(self._parts)).tolist(), wanted_N):
            waiting.append(block)
            if sum(len(rows) for rows, _ in waiting) >= self._mixed_rows:
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
                    rows = first + np.flatnonzero(wanted_N[first : first + len(group)])
                    if len(rows):
                        yield rows, vectors_of(group[self._column].take(pa.array(rows - first)))
                    first += len(group)
            except ObjectNotFoundError as error:
                raise _vacuumed(self._table_uri, self._parts[at]) from error


def _mixed(waiting: Sequence[Batch], generator: np.random.Generator) -> Batch:
    rows, features_BD = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
    order = generator.permutation(len(rows))
    return rows[order], features_BD[order]


def _cut(batch: Batch, count: int, batch_size: int) -> Iterator[Batch]:
    for start in range(0, count, batch_size):
        end = min(start + batch_size, count)
        yield batch[0][start:end], batch[1][start:end]


@dataclass(frozen=True)
class TableRows:
    """What a table has to train on: its good rows.

    Attributes:
        uris: N.
        labels: N, null where there is none.
        vectors: by column.
    """

    uris: pa.StringArray
    labels: pa.StringArray
    vectors: dict[str, Vectors]


def read_table(table: Table, columns: Sequence[str], memory_bytes: int) -> TableRows:
    """Read a table's rows; their vectors too, where they fit.

    What is in memory is sorted by URI, so that the same rows give the same training however they lie in parts.

    Args:
        table: at the version to train on.
        columns: embedding columns.
        memory_bytes: what the vectors, and what is computed of them, may take.

    Raises:
        ExamplesError: there is no row.
        TableError: a part is gone: the table moved on and was vacuumed.
    """
    parts = sorted(table.parts("ok"), key=lambda part: part.path)
    count = sum(part.rows for part in parts)
    if not count:
        raise ExamplesError(f"{table.uri} has no row with a vector; run `tlray extract` first")
    lengths = {column: math.prod(table.recipe_file.shapes[column]) for column in columns}
    # Loading takes the vectors twice, sorting included.
    fits = 2 * count * 4 * sum(lengths.values()) <= memory_bytes
    names = ["uri", "label", *(columns if fits else ())]
    rows = pa.concat_tables([_read(table, part, names) for part in parts])
    if not fits:
        share = memory_bytes // 2
        streamed = {name: StreamedVectors(table.uri, name, parts, length, share) for name, length in lengths.items()}
        return TableRows(_array(rows["uri"]), _array(rows["label"]), dict(streamed))
    order_N = np.argsort(np.array(rows["uri"].to_pylist(), object), kind="stable")
    taken = pa.array(order_N)
    loaded: dict[str, Vectors] = {name: LoadedVectors(vectors_of(rows[name])[order_N]) for name in columns}
    return TableRows(_array(rows["uri"]).take(taken), _array(rows["label"]).take(taken), loaded)


def _array(column: pa.ChunkedArray) -> pa.StringArray:
    return column.cast(pa.string()).combine_chunks()


def _read(table: Table, part: Part, columns: Sequence[str]) -> pa.Table:
    try:
        return read_part(table.uri, part.path, columns)
    except ObjectNotFoundError as error:
        raise _vacuumed(table.uri, part) from error


def _vacuumed(table_uri: str, part: Part) -> TableError:
    return TableError(
        f"{table_uri} has no part {part.path} any more: the table moved on and was vacuumed; train on its newest version"
    )
