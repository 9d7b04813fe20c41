"""Reading an index's rows and vectors out of its table.

Shape legend: N rows, B rows of one part, D dimensions.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tlray.errors import ObjectNotFoundError, TableError
from tlray.lake.table.parts import READ_THREADS, read_part, vectors_of
from tlray.lake.table.table import Table
from tlray.search.neighbours.exact import Metric, prepare
from tlray.search.rows.copies import keys_of
from tlray.search.rows.row_table import PLACED_SCHEMA

_IN_MEMORY_FRACTION = 0.5


class KeyedVectors(NamedTuple):
    """Prepared vectors, and what tells which of them are equal.

    Attributes:
        vectors_ND: float32; perhaps a memory-mapped file.
        keys_N: `tlray.search.rows.copies.keys_of` them.
        is_zero_N: which ones have no direction, where the metric is cosine.
    """

    vectors_ND: np.ndarray
    keys_N: np.ndarray
    is_zero_N: np.ndarray


def keyed(features_ND: np.ndarray, metric: Metric) -> KeyedVectors:
    """Prepare vectors as a table has them; contiguous float32 ones where they are."""
    vectors_ND = np.ascontiguousarray(features_ND, np.float32)
    is_zero_N = prepare(vectors_ND, metric)
    return KeyedVectors(vectors_ND, keys_of(vectors_ND), is_zero_N)


def read_vectors(
    table_uri: str,
    column: str,
    parts: Sequence[tuple[str, int]],
    dimensions: int,
    metric: Metric,
    scratch: Path,
    memory_bytes: int,
) -> KeyedVectors:
    """All vectors of some parts, in order, prepared.

    Args:
        table_uri: the table.
        column: the embedding column.
        parts: paths and row counts.
        dimensions: of a vector.
        metric: what they are prepared for.
        scratch: a folder for a file that stands in for memory where the vectors are too many.
        memory_bytes: what they may take in memory.
    """
    shape = (sum(rows for _, rows in parts), dimensions)
    vectors_ND: np.ndarray
    if shape[0] * shape[1] * 4 <= _IN_MEMORY_FRACTION * memory_bytes:
        vectors_ND = np.empty(shape, np.float32)
    else:
        vectors_ND = np.lib.format.open_memmap(scratch / "features.npy", "w+", np.float32, shape)
    keys_N, is_zero_N = np.empty(shape[0], np.uint64), np.empty(shape[0], bool)
    starts = np.cumsum([0, *(rows for _, rows in parts)]).tolist()

    def read(path: str, start: int, end: int) -> None:
        # Straight to where they belong: memory that is new costs more than the copy.
        read_BD = vectors_of(read_part(table_uri, path, [column])[column], vectors_ND[start:end])
        _, keys_N[start:end], is_zero_N[start:end] = keyed(read_BD, metric)

    with ThreadPoolExecutor(READ_THREADS) as threads:
        list(threads.map(read, [path for path, _ in parts], starts[:-1], starts[1:]))
    return KeyedVectors(vectors_ND, keys_N, is_zero_N)


def read_rows(table: Table, paths: Sequence[str]) -> pa.Table:
    """URI, etag and label of all rows of some parts, and where they are; no vectors.

    Returns:
        PLACED_SCHEMA, in the order of the parts.
    """

    def read(path: str) -> pa.Table:
        rows = read_part(table.uri, path, ["uri", "etag", "label"])
        rows = rows.append_column(PLACED_SCHEMA.field("part"), pa.repeat(pa.scalar(path), len(rows)))
        return rows.append_column(PLACED_SCHEMA.field("row"), pa.array(np.arange(len(rows), dtype=np.int32))).cast(
            PLACED_SCHEMA
        )

    with ThreadPoolExecutor(READ_THREADS) as threads:
        return pa.concat_tables([PLACED_SCHEMA.empty_table(), *threads.map(read, paths)])


def read_part_vectors(table_uri: str, path: str, column: str) -> np.ndarray:
    """All vectors_BD of one part, as the table has them."""
    return vectors_of(read_part(table_uri, path, [column])[column])


def read_row_vectors(table_uri: str, column: str, rows: pa.Table) -> np.ndarray:
    """Vectors of some rows of a table, in the rows' order, as the table has them; only their parts are read.

    Args:
        table_uri: the table.
        column: the embedding column.
        rows: with `part` and `row`.

    Raises:
        TableError: a part is gone: the table moved on and was vacuumed.
    """
    at = rows["row"].to_numpy()
    names = np.asarray(rows["part"].to_pylist(), object)
    vectors_ND: np.ndarray | None = None
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
        if vectors_ND is None:
            vectors_ND = np.empty((len(rows), found_BD.shape[1]), np.float32)
        vectors_ND[wanted] = found_BD
    return np.empty((0, 0), np.float32) if vectors_ND is None else vectors_ND
