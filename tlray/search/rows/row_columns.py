"""Columns that travelled into a table, as its index keeps them: a Parquet file beside its rows, in their order.

A search reads of it what its condition names, some rows at a time, so that none of it stays in memory. It is written with each
version of an index and never changes, so a condition is asked of the version that answers, wherever its table has moved to.

Shape legend: N rows of the index.
"""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tlray.columns.column import fields_of
from tlray.errors import ObjectNotFoundError, TableError
from tlray.lake.table.carried import with_fields
from tlray.lake.table.parts import READ_THREADS
from tlray.lake.table.table import Table

ROW_GROUP_ROWS = 131_072


class RowColumns:
    """The columns of an index's rows.

    Args:
        source: of a Parquet file: a memory map, which outlives the file's name, or a buffer.
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        self._metadata = pq.read_metadata(source)
        self.fields: pa.Schema = self._metadata.schema.to_arrow_schema()

    @classmethod
    def open(cls, path: Path) -> "RowColumns":
        """The columns in a local file."""
        return cls(pa.memory_map(str(path)))

    @classmethod
    def of(cls, values: pa.Table) -> "RowColumns":
        """Columns in memory, as a file has them.

        Args:
            values: N rows.
        """
        sink = io.BytesIO()
        pq.write_table(values, sink, compression="zstd", row_group_size=ROW_GROUP_ROWS, store_schema=False)
        return cls(pa.BufferReader(sink.getvalue()))

    def to_bytes(self) -> bytes:
        """The file: zstd Parquet that any engine reads."""
        self._source.seek(0)
        data: bytes = self._source.read()
        return data

    def __len__(self) -> int:
        return int(self._metadata.num_rows)

    def blocks(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of all rows, in order, a row group at a time."""
        file = pq.ParquetFile(self._source, metadata=self._metadata)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, list(names), use_threads=False)

    def take(self, names: Sequence[str], positions_M: np.ndarray) -> pa.Table:
        """Some columns of M rows given by position, which are read with the rows that are in a row group with them."""
        file = pq.ParquetFile(self._source, metadata=self._metadata)
        counts = [self._metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        starts = np.cumsum([0, *counts])
        group_M = np.searchsorted(starts, positions_M, side="right") - 1
        taken, order = [self.fields.empty_table().select(list(names))], [np.empty(0, np.int64)]
        for group in np.unique(group_M):
            order.append(np.flatnonzero(group_M == group))
            block = file.read_row_group(int(group), list(names), use_threads=False)
            taken.append(block.select(list(names)).take(pa.array(positions_M[order[-1]] - starts[group])))
        return pa.concat_tables(taken).take(pa.array(np.argsort(np.concatenate(order))))

    def read(self, fields: Sequence[pa.Field]) -> pa.Table:
        """Some columns of all rows; null where it does not have them."""
        there = [field.name for field in fields if field.name in self.fields.names]
        empty = pa.schema(fields).empty_table()
        if not there:
            return pa.table([pa.nulls(len(self), field.type) for field in fields], schema=empty.schema)
        return pa.concat_tables([empty, *(with_fields(block, fields) for block in self.blocks(there))])


def columns_of(table: Table, rows: pa.Table, before: tuple[pa.Table, RowColumns] | None = None) -> RowColumns | None:
    """The columns of an index's rows, read from the parts that they are in.

    Args:
        table: at the version that the index shows.
        rows: of the index, with `id`, `part` and `row`; N.
        before: rows of an older version, by id, and their columns: what is still in a part that these were in is taken from
            here, as parts never change.

    Returns:
        N rows; None where no column travelled into the table.

    Raises:
        TableError: a part is gone: the table moved on and was vacuumed.
    """
    fields = fields_of(table.carried)
    if not fields:
        return None
    parts = rows["part"].combine_chunks().dictionary_encode()
    of_part_N, paths = parts.indices.to_numpy(), parts.dictionary
    is_known = np.zeros(len(paths), bool)
    tables, order = [pa.schema(fields).empty_table()], [np.empty(0, np.int64)]
    if before is not None:
        old, columns = before
        is_known = np.asarray(pc.is_in(paths, value_set=old["part"].combine_chunks()), bool)
        order.append(np.flatnonzero(is_known[of_part_N]))
        at = np.searchsorted(old["id"].to_numpy(), rows["id"].to_numpy()[order[-1]])
        tables.append(columns.read(fields).take(pa.array(at)))

    def read(part: int) -> pa.Table:
        path = paths[part].as_py()
        try:
            return table.read_part(path, [field.name for field in fields])
        except ObjectNotFoundError as error:
            raise TableError(
                f"{table.uri} has no part {path} any more: the table moved on and was vacuumed; run `tlray index` again"
            ) from error

    new = np.flatnonzero(~is_known)
    by_part_N, ends = np.argsort(of_part_N, kind="stable"), np.cumsum(np.bincount(of_part_N, minlength=len(paths)))
    places_N = rows["row"].to_numpy()
    with ThreadPoolExecutor(READ_THREADS) as threads:
        for part, found in zip(new, threads.map(read, new), strict=True):
            order.append(by_part_N[ends[part - 1] if part else 0 : ends[part]])
            tables.append(found.take(pa.array(places_N[order[-1]])))
    position_N = np.empty(len(rows), np.int64)
    position_N[np.concatenate(order)] = np.arange(len(rows))
    return RowColumns.of(pa.concat_tables(tables).take(pa.array(position_N)))
