"""Sorted runs: rows by key in bounded memory, whatever their number (an external merge sort).

Rows are added in any order. Whenever a run's worth is there it is sorted and kept in memory, and once that is full, on local
disk, all runs in one Arrow file or two; a thread does both while the next run gathers, as a store takes longer to list than a
disk to write. Then all runs are read together, range of keys after range of keys. Rows that come in order, as a listing of S3
does, are only looked at, never sorted. Keys are compared by code points, which is the order of their UTF-8 bytes, of Arrow and
of S3.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MEMORY_BYTES = 2**30
"""Size of the rows of all sides together that never touch the disk: millions, with names of 83 characters and etags of 32."""

PLAIN_BYTES = 2**31
"""Size of the rows of one side that go to disk as they are: most machines keep so much in their file cache. What is above is
compressed, to about half its size, which takes twice as long as the file cache."""

RANGE_ROWS = 2**20
"""Rows of all sides that are looked at together."""

TEXT_RANGE_ROWS = 2**16
"""The same of rows that bring their texts, of some KB each."""

RUN_ROWS = 2**18
"""Rows that are sorted at once. One run gathers while another is sorted and written; the smaller they are, the less memory has
to be provided for them, which takes longer than sorting what is in order already."""

RUN_BYTES = 2**28
"""Size of a run of rows that are long, as those are that bring their texts: fewer are sorted at once."""

BATCH_ROWS = 2**13
"""Rows that are read from disk at once; two keys for each such batch stay in memory."""

SAMPLE_ROWS = 2**10
"""One key for so many rows of a run stays in memory. Rows in no order have some of each run in every range, which may have so
many more of each than it should: a billion make 3,800 runs, and ranges of at most five million rows."""


class SortedRuns:
    """Rows of one schema, given back by ranges of their key.

    Args:
        schema: of the rows.
        key: the string column to sort by; equal keys keep the order in which they were added.
        folder: an existing one, for what does not fit in memory; the caller removes it.
        memory_bytes: as much stays in memory.

    Attributes:
        rows: how many were added.
        memory_bytes: how much of the memory is left.
        samples: of the keys of all runs: where ranges may be cut.
    """

    def __init__(self, schema: pa.Schema, key: str, folder: Path, *, memory_bytes: int) -> None:
        self.schema = schema
        self.key = key
        self.rows = 0
        self.memory_bytes = memory_bytes
        self._plain = _BatchFile(schema, folder / f"{key}.arrow", None)
        self._packed = _BatchFile(schema, folder / f"{key}.lz4.arrow", "lz4")
        self._runs: list[_Run] = []
        self.samples: list[_Sample] = []

    def add_all(self, tables: Iterable[pa.Table]) -> "SortedRuns":
        """Add all the rows that there are, and return itself."""
        with ThreadPoolExecutor(1, thread_name_prefix="runs") as thread:
            sorting: Future[None] | None = None
            for rows in self._gathered(tables):
                if sorting is not None:
                    sorting.result()  # raises what failed there
                sorting = thread.submit(self._add_run, rows)
                del rows  # their sorted copy takes their place
            if sorting is not None:
                sorting.result()
        self._plain.close()
        self._packed.close()
        return self

    def _gathered(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        waiting: list[pa.Table] = []
        waiting_rows = waiting_bytes = 0
        for rows in tables:
            waiting.append(rows)
            waiting_rows += len(rows)
            waiting_bytes += rows.nbytes
            if waiting_rows >= RUN_ROWS or waiting_bytes >= RUN_BYTES:
                yield pa.concat_tables(waiting)
                waiting, waiting_rows, waiting_bytes = [], 0, 0
        if waiting_rows:
            yield pa.concat_tables(waiting)

    def _add_run(self, rows: pa.Table) -> None:
        self.rows += len(rows)
        pieces = _sorted_pieces(rows, self.key)
        self.samples += [_Sample.of(piece[self.key]) for piece in pieces]
        self._runs.append(_Run(self.key, map(self._batch, pieces)))

    def _batch(self, piece: pa.Table) -> "_Batch":
        keys = piece[self.key]
        return _Batch(keys[0].as_py(), keys[-1].as_py(), self._kept(piece))

    def _kept(self, piece: pa.Table) -> "_Read":
        """Keep a piece, in memory or on disk; returns what reads it back."""
        size = piece.nbytes
        if size > self.memory_bytes:
            return (self._plain if self._plain.size_bytes + size <= PLAIN_BYTES else self._packed).write(piece)
        self.memory_bytes -= size
        return lambda: piece

    def pop_below(self, bound: str | None) -> pa.Table:
        """Take out the rows whose key is under the bound (None: all that are left), sorted, perhaps in many chunks."""
        pieces = [piece for run in self._runs for piece in run.pop_below(bound)]
        rows = pa.concat_tables([self.schema.empty_table(), *pieces])
        return rows if _follow(pieces, self.key) else _sort(rows, self.key)


_Read = Callable[[], pa.Table]


@dataclass(frozen=True, slots=True)
class _Sample:
    """Some of many sorted keys, the last one among them.

    Attributes:
        keys: N strings.
        rows: how many keys end with each of them and follow the one before it: N.
    """

    keys: pa.Array
    rows: np.ndarray

    @staticmethod
    def of(keys: pa.ChunkedArray) -> "_Sample":
        ends = np.arange(len(keys), 0, -SAMPLE_ROWS)[::-1]
        return _Sample(keys.take(pa.array(ends - 1)).combine_chunks(), np.diff(ends, prepend=0))


@dataclass(frozen=True, slots=True)
class _Batch:
    """Consecutive sorted rows of a run, in memory or on disk.

    Attributes:
        first_key: least of them.
        last_key: greatest of them.
        read: gives them.
    """

    first_key: str
    last_key: str
    read: _Read


class _BatchFile:
    """Batches of rows on local disk; there is no file until one is written.

    Args:
        schema: of the rows.
        path: of the file.
        compression: Arrow's name of it, or None.

    Attributes:
        size_bytes: of all rows, before they are compressed.
    """

    def __init__(self, schema: pa.Schema, path: Path, compression: str | None) -> None:
        self.size_bytes = 0
        self._schema = schema
        self._path = path
        self._options = pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)  # a batch is too little for two
        self._count = 0
        self._writer: pa.ipc.RecordBatchFileWriter | None = None
        self._reader: pa.ipc.RecordBatchFileReader | None = None

    def write(self, rows: pa.Table) -> _Read:
        """Add a batch; what reads it, once no more are added."""
        if self._writer is None:
            self._writer = pa.ipc.new_file(str(self._path), self._schema, options=self._options)
        self._writer.write_table(rows)
        self.size_bytes += rows.nbytes
        self._count += 1
        return partial(self._read, self._count - 1)

    def close(self) -> None:
        """No more are added; from now on they can be read."""
        if self._writer is not None:
            self._writer.close()
            options = pa.ipc.IpcReadOptions(use_threads=False)
            self._reader = pa.ipc.open_file(pa.OSFile(str(self._path)), options=options)

    def _read(self, number: int) -> pa.Table:
        assert self._reader is not None
        return pa.Table.from_batches([self._reader.get_batch(number)])


class _Run:
    """Sorted batches that are read once, from front to back.

    Args:
        key: they are sorted by it.
        batches: all of them.
    """

    def __init__(self, key: str, batches: Iterable[_Batch]) -> None:
        self._key = key
        self._batches = deque(batches)
        self._offset = 0

    def pop_below(self, bound: str | None) -> Iterator[pa.Table]:
        while self._batches:
            batch = self._batches[0]
            if bound is not None and batch.first_key >= bound:
                return  # not even read: where rows came in order, most runs have nothing in a range
            rows = batch.read()
            if bound is not None and batch.last_key >= bound:
                end = pc.sum(pc.less(rows[self._key], bound)).as_py()
                if end > self._offset:
                    yield _copy(rows.slice(self._offset, end - self._offset))
                self._offset = end
                return
            yield _copy(rows.slice(self._offset)) if self._offset else rows
            self._batches.popleft()
            self._offset = 0


def _copy(rows: pa.Table) -> pa.Table:
    """The same rows; a slice would keep the whole batch in memory, and that of each run where all have rows in a range."""
    return rows.take(pa.array(np.arange(len(rows))))


def _sorted_pieces(rows: pa.Table, key: str) -> list[pa.Table]:
    """Rows by their key in pieces of a batch's length, each in one chunk."""
    pieces = list(_slices(rows))
    if all(_is_sorted(piece[key]) for piece in pieces) and _follow(pieces, key):
        return [piece.combine_chunks() for piece in pieces]
    return list(_slices(_sort(rows, key)))


def _slices(rows: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, len(rows), BATCH_ROWS):
        yield rows.slice(start, BATCH_ROWS)


def _is_sorted(keys: pa.ChunkedArray) -> bool:
    return len(keys) < 2 or pc.all(pc.less_equal(keys.slice(0, len(keys) - 1), keys.slice(1))).as_py() is True


def _follow(pieces: Sequence[pa.Table], key: str) -> bool:
    """Whether each piece, sorted and not empty, begins where the one before it ended, or later."""
    return all(one[key][-1].as_py() <= other[key][0].as_py() for one, other in pairwise(pieces))


def _sort(rows: pa.Table, key: str) -> pa.Table:
    """Rows by their key in one chunk, equal ones in the order that they have."""
    rows = rows.combine_chunks()
    return rows.take(pc.sort_indices(rows[key]))  # Arrow's sort of one column is stable


def cut_ranges(sides: Sequence[SortedRuns], rows: int) -> list[str | None]:
    """Upper bounds (exclusive) of ranges of keys that hold about so many rows of all sides together; the last is None.

    A range has up to SAMPLE_ROWS more of each run.
    """
    samples = [sample for side in sides for sample in side.samples]
    keys = pa.chunked_array([sample.keys for sample in samples], pa.string())
    order = np.asarray(pc.sort_indices(keys))
    before = np.cumsum(np.concatenate([np.empty(0, np.int64), *(sample.rows for sample in samples)])[order]) // rows
    bounds = keys.take(pa.array(order[np.flatnonzero(np.diff(before, prepend=0))]))
    return [*bounds.unique().to_pylist(), None]
