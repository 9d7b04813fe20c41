"""Sorted runs: rows by key in bounded memory, whatever their number (an external merge sort).

Rows are added in any order. Whenever a run's worth is there it is sorted, and once they are more than fit in memory, all but
the last run go to local disk, into one Arrow file; a thread does both while the next run gathers, as a store takes longer to
list than a disk to write. Then all runs are read together, range of keys after range of keys. Rows that come in order, as a
listing of S3 does, are only looked at, never sorted. Keys are compared by code points, which is the order of their UTF-8
bytes, of Arrow and of S3.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

MEMORY_ROWS = 2**20
"""Rows that never touch the disk: about 150 MB of identities with names of 90 characters."""

RUNS_IN_MEMORY = 4
"""Runs that so many rows make. Once rows go to disk, one run gathers while another is sorted and a third is written; the
smaller they are, the less memory has to be provided for them, which takes longer than sorting what is in order already."""

BATCH_ROWS = 2**13
"""Rows that are read from disk at once; two keys for each such batch stay in memory."""


class SortedRuns:
    """Rows of one schema, given back by ranges of their key.

    Args:
        schema: of the rows.
        key: the string column to sort by; equal keys keep the order in which they were added.
        folder: an existing one, for what does not fit in memory; the caller removes it.
        memory_rows: as many rows stay in memory.
    """

    def __init__(self, schema: pa.Schema, key: str, folder: Path, *, memory_rows: int = MEMORY_ROWS) -> None:
        self.schema = schema
        self.key = key
        self.rows = 0
        self._memory_rows = memory_rows
        self._batches = _Batches(schema, folder / f"{key}.arrow")
        self._runs: list[_Run] = []

    @classmethod
    def of(cls, tables: Iterable[pa.Table], schema: pa.Schema, key: str, folder: Path, *, memory_rows: int) -> "SortedRuns":
        """All rows of some tables."""
        runs = cls(schema, key, folder, memory_rows=memory_rows)
        with ThreadPoolExecutor(1, thread_name_prefix="runs") as thread:
            sorting: Future[None] | None = None
            for rows in runs._gathered(tables):
                if sorting is not None:
                    sorting.result()  # raises what failed there
                sorting = thread.submit(runs._add_run, rows)
                del rows  # their sorted copy takes their place
            if sorting is not None:
                sorting.result()
        runs._batches.close()
        return runs

    def _gathered(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        waiting: list[pa.Table] = []
        waiting_rows = 0
        for rows in tables:
            waiting.append(rows)
            waiting_rows += len(rows)
            if waiting_rows * RUNS_IN_MEMORY >= self._memory_rows:
                yield pa.concat_tables(waiting)
                waiting, waiting_rows = [], 0
        if waiting_rows:
            yield pa.concat_tables(waiting)

    def _add_run(self, rows: pa.Table) -> None:
        self.rows += len(rows)
        if self.rows > self._memory_rows:
            self._batches.spill()
        pieces = _sorted_pieces(rows, self.key)
        self._runs.append(_Run(pieces, self.key, self._batches))

    def batch_keys(self) -> list[tuple[str, int]]:
        """The last key and the rows of each batch: where ranges may be cut."""
        return [pair for run in self._runs for pair in run.batch_keys()]

    def pop_below(self, bound: str | None) -> pa.Table:
        """Rows not given yet whose key is under the bound (None: all that is left), sorted, perhaps in many chunks."""
        pieces = [piece for run in self._runs for piece in run.pop_below(bound)]
        rows = pa.concat_tables([self.schema.empty_table(), *pieces])
        return rows if _follow(pieces, self.key) else _sort(rows, self.key)


class _Batches:
    """Batches of rows by number, in the order in which they were added: on local disk, or still in memory."""

    def __init__(self, schema: pa.Schema, path: Path) -> None:
        self._schema = schema
        self._path = path
        self._count = 0
        self._in_memory: dict[int, pa.Table] = {}
        self._writer: pa.ipc.RecordBatchFileWriter | None = None
        self._reader: pa.ipc.RecordBatchFileReader | None = None

    def add(self, rows: pa.Table) -> int:
        """Keep a batch; its number."""
        self._in_memory[self._count] = rows
        self._count += 1
        return self._count - 1

    def spill(self) -> None:
        """Move all that is in memory to the disk."""
        if self._writer is None:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._writer = pa.ipc.new_file(str(self._path), self._schema, options=options)
        for rows in self._in_memory.values():
            self._writer.write_table(rows)
        self._in_memory.clear()

    def close(self) -> None:
        """No more are added; from now on they can be read."""
        if self._writer is not None:
            self._writer.close()
            self._reader = pa.ipc.open_file(pa.OSFile(str(self._path)))

    def read(self, number: int) -> pa.Table:
        """A batch; one that is on disk is read each time."""
        if number in self._in_memory:
            return self._in_memory[number]
        assert self._reader is not None
        return pa.Table.from_batches([self._reader.get_batch(number)])

    def drop(self, number: int) -> None:
        """It is not read again."""
        self._in_memory.pop(number, None)


class _Run:
    """Sorted rows that are read once, from front to back."""

    def __init__(self, pieces: Sequence[pa.Table], key: str, batches: _Batches) -> None:
        self._key = key
        self._batches = batches
        self._numbers = [batches.add(piece) for piece in pieces]
        self._rows = [len(piece) for piece in pieces]
        self._first_keys: list[str] = [piece[key][0].as_py() for piece in pieces]
        self._last_keys: list[str] = [piece[key][-1].as_py() for piece in pieces]
        self._at = self._offset = 0

    def batch_keys(self) -> list[tuple[str, int]]:
        return list(zip(self._last_keys, self._rows, strict=True))

    def pop_below(self, bound: str | None) -> Iterator[pa.Table]:
        while self._at < len(self._numbers):
            if bound is not None and self._first_keys[self._at] >= bound:
                return  # not even read: where rows came in order, most runs have nothing in a range
            batch = self._batches.read(self._numbers[self._at]).slice(self._offset)
            if bound is not None and self._last_keys[self._at] >= bound:
                below = pc.sum(pc.less(batch[self._key], bound)).as_py()
                self._offset += below
                if below:
                    yield batch.slice(0, below)
                return
            yield batch
            self._batches.drop(self._numbers[self._at])
            self._at, self._offset = self._at + 1, 0


def _sorted_pieces(rows: pa.Table, key: str) -> list[pa.Table]:
    """Rows by their key in pieces of a batch's length, each in one chunk."""
    pieces = [piece.combine_chunks() for piece in _slices(rows)]
    if all(_is_sorted(piece[key]) for piece in pieces) and _follow(pieces, key):
        return pieces
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
    """Upper bounds (exclusive) of ranges of keys that hold about so many rows of all sides together; the last is None."""
    bounds: list[str | None] = []
    count = 0
    for key, batch_rows in sorted(pair for side in sides for pair in side.batch_keys()):
        count += batch_rows
        if count >= rows and (not bounds or key != bounds[-1]):
            bounds.append(key)
            count = 0
    return [*bounds, None]
