"""The rows of a table that there are to train on, and the vectors of those that became examples: in memory or streamed.

Shape legend: T rows of the table in the order of its parts, N examples, B examples of a batch, D length of a vector.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.errors import ExamplesError, ObjectNotFoundError, TableError
from tlray.lake.table.parts import READ_THREADS, Part, stream_part, vectors_of
from tlray.lake.table.schema import STATUS_FIELD
from tlray.lake.table.table import Table
from tlray.where.condition import read_condition

BLOCK_ROWS = 8192
Batch = tuple[np.ndarray, np.ndarray]
"""positions_B (int64, of the examples) and features_BD (float32)."""


@dataclass(frozen=True)
class TableRows:
    """The rows of a table that have vectors and fulfil a condition, in order of URI, however they lie in its parts.

    Attributes:
        table: at the version that is trained on.
        parts: that hold them, in order of path.
        items: of each row its `uri`, `etag` and `label`, as the parts have them, and the columns that were asked for; T.
        place_T: int64, where each of them lies in the parts, one after the other.
    """

    table: Table
    parts: tuple[Part, ...]
    items: pa.Table
    place_T: np.ndarray

    @property
    def uris(self) -> pa.StringArray:
        """The URIs of the images; T."""
        return self.items["uri"].cast(pa.string()).combine_chunks()

    @property
    def labels(self) -> pa.StringArray:
        """The table's own labels, null where an image has none; T."""
        return self.items["label"].cast(pa.string()).combine_chunks()

    def example_of_place(self, rows_N: np.ndarray) -> np.ndarray:
        """Which example each row of the parts is.

        Args:
            rows_N: int64, the row that each example is.

        Returns:
            int64, for each row of the parts, in their order: the number of the example, or -1.
        """
        example_T = np.full(sum(part.rows for part in self.parts), -1, np.int64)
        example_T[self.place_T[rows_N]] = np.arange(len(rows_N))
        return example_T


def read_rows(table: Table, columns: Sequence[str] = (), where: str | None = None) -> TableRows:
    """Read which rows a table has; no vectors yet.

    Args:
        table: at the version that is trained on.
        columns: names of further columns of it that are read.
        where: a condition that rows must fulfil (`tlray.where.condition`); None for none.

    Raises:
        ExamplesError: there are none, or there is no such column.
        WhereError: the condition cannot be read, or names a column that is not there.
        TableError: a part is gone: the table moved on and was vacuumed.
    """
    parts = tuple(sorted(table.parts("ok"), key=lambda part: part.path))
    if not sum(part.rows for part in parts):
        raise ExamplesError(f"{table.uri} has no row with a vector; run `tlray extract` first")
    light = [field for field in table.schema if field.name not in table.recipe_file.lengths and field.name != STATUS_FIELD.name]
    names = [field.name for field in light]
    if missing := [name for name in columns if name not in names]:
        raise ExamplesError(f"{table.uri} has no column {', '.join(missing)} to train by; it has {', '.join(names)}")
    condition = None if where is None else read_condition(where, light, table.uri)
    wanted = list(dict.fromkeys(["uri", "etag", "label", *columns]))
    asked = list(dict.fromkeys([*wanted, *(condition.columns if condition else ())]))
    with ThreadPoolExecutor(READ_THREADS, "rows") as threads:
        items = pa.concat_tables(threads.map(lambda part: read_columns(table, part, asked), parts))
    kept_T = np.arange(len(items)) if condition is None else np.flatnonzero(condition.mask(items))
    if not len(kept_T):
        raise ExamplesError(f"no row of {table.uri} fulfils {where!r}; look at its columns with `tlray.open`")
    items = items.select(wanted).take(pa.array(kept_T))
    order_T = pc.sort_indices(items["uri"]).to_numpy()
    return TableRows(table, parts, items.take(pa.array(order_T)).combine_chunks(), kept_T[order_T].astype(np.int64))


def read_columns(table: Table, part: Part, columns: Sequence[str]) -> pa.Table:
    """Read some columns of a part of a table.

    Raises:
        TableError: it is gone.
    """
    try:
        return table.read_part(part.path, columns)
    except ObjectNotFoundError as error:
        raise vacuumed(table.uri, part) from error


def read_vectors(rows: TableRows, column: str, rows_N: np.ndarray, into_ND: np.ndarray) -> None:
    """Read the vectors of examples into an array.

    Args:
        rows: of the table.
        column: of embeddings.
        rows_N: int64, the row that each example is.
        into_ND: float32, where to put them; may be a file's memory map.

    Raises:
        TableError: a part is gone.
    """
    example_T = rows.example_of_place(rows_N)
    ends = np.cumsum([part.rows for part in rows.parts])

    def read(part: Part, end: int) -> None:
        example_B = example_T[end - part.rows : end]
        is_wanted_B = example_B >= 0
        if is_wanted_B.any():
            into_ND[example_B[is_wanted_B]] = vectors_of(read_columns(rows.table, part, (column,))[column])[is_wanted_B]

    with ThreadPoolExecutor(READ_THREADS, "vectors") as threads:
        list(threads.map(read, rows.parts, ends))


def vacuumed(table_uri: str, part: Part) -> TableError:
    """The error for a part that a version names and that is not there any more."""
    return TableError(
        f"{table_uri} has no part {part.path} any more: the table moved on and was vacuumed; train on its newest version"
    )


class Vectors(Protocol):
    """The vectors of examples in one column of a table.

    Attributes:
        dimensions: D.
        in_memory: whether a pass over them costs no reading.
    """

    dimensions: int
    in_memory: bool

    def blocks(self, wanted_N: np.ndarray) -> Iterator[Batch]:
        """Go through all wanted examples once, always in the same order.

        Args:
            wanted_N: bool.
        """
        ...

    def batches(self, wanted_N: np.ndarray, batch_size: int, generator: np.random.Generator) -> Iterator[Batch]:
        """Go through all wanted examples once, shuffled; the last batch may be smaller.

        Args:
            wanted_N: bool.
            batch_size: B.
            generator: of the order.
        """
        ...


class LoadedVectors:
    """The vectors of examples, held in memory.

    Args:
        features_ND: float32.
    """

    in_memory = True

    def __init__(self, features_ND: np.ndarray) -> None:
        self.features_ND = features_ND
        self.dimensions = features_ND.shape[1]

    def blocks(self, wanted_N: np.ndarray) -> Iterator[Batch]:
        """Go through all wanted examples once, in order of position."""
        positions = np.flatnonzero(wanted_N)
        for start in range(0, len(positions), BLOCK_ROWS):
            yield positions[start : start + BLOCK_ROWS], self.features_ND[positions[start : start + BLOCK_ROWS]]

    def batches(self, wanted_N: np.ndarray, batch_size: int, generator: np.random.Generator) -> Iterator[Batch]:
        """Go through all wanted examples once, in an order that depends on the generator alone."""
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
        """Go through all wanted examples once, in the order of the table's parts."""
        return self._read(range(len(self._parts)), wanted_N)

    def batches(self, wanted_N: np.ndarray, batch_size: int, generator: np.random.Generator) -> Iterator[Batch]:
        """Go through all wanted examples once: parts in random order, as many of their rows mixed as memory allows."""
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
