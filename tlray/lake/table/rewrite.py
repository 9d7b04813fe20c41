"""Parts that are written again: joined with others, or without some of their rows. Workers do it, as it takes time."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from tlray.errors import TableCorruptError, TlrayError
from tlray.lake.table.carried import with_carried, with_values
from tlray.lake.table.parts import READ_THREADS, Part, read_part, write_part

PART_ROWS = 20_480
"""Rows of a part of its final size: 20 MB at 512 numbers a row and `half`, 75 MB at 2,048; a billion rows are 49,000 parts
(`tests.bench.growth`)."""

MOST_PART_BYTES = 128 * 2**20
"""Fewer rows are enough from this size on: Delta's own default for optimised files is of this order, and it fits a worker."""

MANY_SMALL_PARTS = 16
"""From so many small parts on, joining them pays though they do not make a whole one."""


class Submit(Protocol):
    """Has a worker call a function, on this machine or on a cluster."""

    def __call__(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> "Future[Any]":
        """What the call returns or raises, once it has ended."""
        ...


def in_this_thread(function: Callable[..., Any], /, *arguments: Any, **options: Any) -> "Future[Any]":
    """The `Submit` of one that has no workers: the call is made at once."""
    future: Future[Any] = Future()
    try:
        future.set_result(function(*arguments, **options))
    except TlrayError as error:
        future.set_exception(error)
    return future


def is_whole(rows: int, size_bytes: int) -> bool:
    """Whether a part of so many rows and bytes has its final size."""
    return rows >= PART_ROWS or size_bytes >= MOST_PART_BYTES


def wholes(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Parts in groups that each make a whole part, the last one perhaps less."""
    group: list[Part] = []
    for part in parts:
        group.append(part)
        if is_whole(sum(one.rows for one in group), sum(one.size_bytes for one in group)):
            yield group
            group = []
    if group:
        yield group


def join_parts(table_uri: str, parts: Sequence[Part], *, stem: str, recipe_id: str, carried: Sequence[pa.Field] = ()) -> Part:
    """Write the rows of several parts again as one, in their order; nobody sees it until it is committed.

    Args:
        table_uri: the table.
        parts: of one status, at least one.
        stem: see `write_part`.
        recipe_id: the table's (`RecipeFile.table_id`).
        carried: columns that travelled into the table, which parts of before do not have.

    Raises:
        TableCorruptError: a part is damaged, or has another number of rows than the log says.
    """
    rows = (with_carried(some, carried) for some in _rows_in_order(table_uri, parts))
    joined = write_part(table_uri, rows, status=parts[0].status, stem=stem, recipe_id=recipe_id)
    expected = sum(part.rows for part in parts)
    if joined.rows != expected:
        raise TableCorruptError(
            f"{len(parts)} parts of {table_uri}, from {parts[0].path} on, have {joined.rows} rows, the log says {expected}: "
            "`tlray verify` names every damaged file"
        )
    return joined


def _rows_in_order(table_uri: str, parts: Sequence[Part]) -> Iterator[pa.Table]:
    """The rows of each part; READ_THREADS of them are read at once, and no more are in memory."""
    with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="parts") as threads:
        for start in range(0, len(parts), READ_THREADS):
            yield from threads.map(lambda part: read_part(table_uri, part.path), parts[start : start + READ_THREADS])


OtherValues = tuple[np.ndarray, pa.Table]
"""Positions of some rows, and their values in columns that travel (`tlray.lake.table.carried.with_values`)."""


def part_without(
    table_uri: str, part: Part, keep_B: np.ndarray, *, stem: str, recipe_id: str, other: OtherValues | None = None
) -> Part | None:
    """Write a part again without some of its rows, or with other values in some; None, and no file, where no row is left.

    Args:
        table_uri: the table.
        part: as it is, B rows.
        keep_B: whether each of its rows stays.
        stem: see `write_part`.
        recipe_id: the table's (`RecipeFile.table_id`).
        other: the other values.
    """
    if not keep_B.any():
        return None
    rows = read_part(table_uri, part.path)
    if other is not None:
        rows = with_values(rows, *other)
    return write_part(table_uri, rows.filter(pa.array(keep_B)), status=part.status, stem=stem, recipe_id=recipe_id)
