"""Sorted runs: rows by key in bounded memory, whatever their number (an external merge sort).

Rows are added in any order. Whenever a chunk is full it is sorted, and when another one follows it goes to local disk as an
Arrow file; a thread does both while the next chunk gathers, as a store takes longer to list than a disk to write. Then all
runs are read together, range of keys after range of keys. Rows that come in order, as a listing of S3 does, are not sorted
again, and what fits one chunk never touches the disk. Keys are compared by code points, which is the order of their UTF-8
bytes, of Arrow and of S3.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

CHUNK_ROWS = 2**20
"""Rows that are sorted in memory: about 150 MB of identities with names of 90 characters."""

BATCH_ROWS = 2**13
"""Rows that are read from disk at once; two keys for each such batch stay in memory."""


class SortedRuns:
    """Rows of one schema, given back by ranges of their key.

    Args:
        schema: of the rows.
        key: the string column to sort by; equal keys keep the order in which they were added.
        folder: an existing one, for what does not fit in memory; the caller removes it.
        chunk_rows: rows of a run.
    """

    def __init__(self, schema: pa.Schema, key: str, folder: Path, *, chunk_rows: int = CHUNK_ROWS) -> None:
        self.schema = schema
        self.key = key
        self.rows = 0
        self._folder = folder
        self._chunk_rows = chunk_rows
        self._runs: list[_Run] = []

    @classmethod
    def of(cls, tables: Iterable[pa.Table], schema: pa.Schema, key: str, folder: Path, *, chunk_rows: int) -> "SortedRuns":
        """All rows of some tables."""
        runs = cls(schema, key, folder, chunk_rows=chunk_rows)
        with ThreadPoolExecutor(1, thread_name_prefix="runs") as thread:
            sorting: Future[None] | None = None
            for chunk in runs._chunks(tables):
                if sorting is not None:
                    sorting.result()  # raises what failed there; never more than three chunks in memory
                sorting = thread.submit(runs._add_run, chunk)
                del chunk  # its sorted copy takes its place
            if sorting is not None:
                sorting.result()
        return runs

    def _chunks(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        waiting: list[pa.Table] = []
        waiting_rows = 0
        for rows in tables:
            waiting.append(rows)
            waiting_rows += len(rows)
            if waiting_rows >= self._chunk_rows:
                yield pa.concat_tables(waiting)
                waiting, waiting_rows = [], 0
        if waiting_rows:
            yield pa.concat_tables(waiting)

    def _add_run(self, rows: pa.Table) -> None:
        self.rows += len(rows)
        if self._runs:
            self._runs[-1].spill(self._folder / f"{self.key}-{len(self._runs):06d}.arrow")
        self._runs.append(_Run(sort_by(rows, self.key), self.key))

    def batch_keys(self) -> list[tuple[str, int]]:
        """The last key and the rows of each batch: where ranges may be cut."""
        return [pair for run in self._runs for pair in run.batch_keys()]

    def pop_below(self, bound: str | None) -> pa.Table:
        """Rows not given yet whose key is under the bound (None: all that is left), sorted."""
        found = [piece for run in self._runs for piece in run.pop_below(bound)]
        return sort_by(pa.concat_tables([self.schema.empty_table(), *found]), self.key)


class _Run:
    """A sorted chunk that is read once, from front to back."""

    def __init__(self, rows: pa.Table, key: str) -> None:
        self._key = key
        self._rows: pa.Table | None = rows
        self._file: pa.ipc.RecordBatchFileReader | None = None
        self._starts = np.append(np.arange(0, len(rows), BATCH_ROWS), len(rows))
        self._first_keys: list[str] = rows[key].take(pa.array(self._starts[:-1])).to_pylist()
        self._last_keys: list[str] = rows[key].take(pa.array(self._starts[1:] - 1)).to_pylist()
        self._batch = self._offset = 0

    def spill(self, path: Path) -> None:
        assert self._rows is not None
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, self._rows.schema, options=options) as writer:
            writer.write_table(self._rows, max_chunksize=BATCH_ROWS)
        self._rows = None
        self._file = pa.ipc.open_file(pa.OSFile(str(path), "rb"))

    def batch_keys(self) -> list[tuple[str, int]]:
        return list(zip(self._last_keys, np.diff(self._starts).tolist(), strict=True))

    def pop_below(self, bound: str | None) -> Iterator[pa.Table]:
        while self._batch < len(self._last_keys):
            if bound is not None and self._first_keys[self._batch] >= bound:
                return  # not even read: where rows came in order, most runs have nothing in a range
            batch = self._read().slice(self._offset)
            if bound is not None and self._last_keys[self._batch] >= bound:
                below = pc.sum(pc.less(batch[self._key], bound)).as_py()
                self._offset += below
                yield batch.slice(0, below)
                return
            yield batch
            self._batch, self._offset = self._batch + 1, 0
        self._rows = None

    def _read(self) -> pa.Table:
        if self._file is not None:
            return pa.Table.from_batches([self._file.get_batch(self._batch)])
        assert self._rows is not None
        return self._rows.slice(self._starts[self._batch], self._starts[self._batch + 1] - self._starts[self._batch])


def sort_by(rows: pa.Table, key: str) -> pa.Table:
    """Rows by their key in one chunk, equal ones in the order that they have; costs little where they are in order already."""
    rows = rows.combine_chunks()
    keys = rows[key]
    if len(rows) > 1 and not pc.all(pc.less_equal(keys.slice(0, len(rows) - 1), keys.slice(1))).as_py():
        rows = rows.take(pc.sort_indices(keys))  # Arrow's sort of one column is stable
    return rows


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
