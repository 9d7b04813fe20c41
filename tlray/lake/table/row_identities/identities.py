"""What a table holds: the identity of each live row, without its vectors."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.columns.column import Column, fields_of
from tlray.lake.table.carried import with_fields
from tlray.lake.table.parts import READ_THREADS, Part, read_part
from tlray.lake.table.table import Table

ITEM, RETRY, PART, ROW = "its item", "is retried", "its part", "its row"
"""Names with a space, which those of columns that travel cannot have."""

IDENTITY_SCHEMA = pa.schema(
    [
        (ITEM, pa.string()),
        ("etag", pa.string()),
        ("label", pa.string()),
        (RETRY, pa.bool_()),
        (PART, pa.uint32()),
        (ROW, pa.uint32()),
    ]
)
"""A live row: its image (or the shard that holds it), the version and label it was embedded with, whether it failed for a
reason that this run tries again, and where it is: index of the part, position in it."""


def identity_schema(columns: Iterable[Column] = ()) -> pa.Schema:
    """IDENTITY_SCHEMA, and the row's values in columns that travel."""
    return pa.schema([*IDENTITY_SCHEMA, *fields_of(columns)])


def identities(
    table: Table,
    parts: Sequence[Part],
    retry_codes: Iterable[str] = (),
    item_of: Callable[[pa.ChunkedArray], pa.ChunkedArray] = lambda uris: uris,
    columns: Sequence[Column] = (),
) -> Iterator[pa.Table]:
    """The identity of each row of some parts.

    Args:
        table: that they belong to.
        parts: its live ones.
        retry_codes: error codes whose rows are tried again.
        item_of: from the URIs of rows to what a source lists for them: the images themselves, or the files that hold them.
        columns: that travel, whose values are read as well.

    Yields:
        Tables of `identity_schema`, one a part, in order.
    """
    codes = pa.array(list(retry_codes), pa.string())
    schema, fields = identity_schema(columns), fields_of(columns)
    names = ["uri", "etag", "label", "error", *(field.name for field in fields)]

    def read(index: int) -> pa.Table:
        rows = read_part(table.uri, parts[index].path, names)
        where = [np.full(len(rows), index, np.uint32), np.arange(len(rows), dtype=np.uint32)]
        retry = pc.is_in(rows["error"], value_set=codes)
        values = with_fields(rows, fields).columns
        return pa.table([item_of(rows["uri"]), rows["etag"], rows["label"], retry, *where, *values], schema=schema)

    with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="identities") as threads:
        for start in range(0, len(parts), READ_THREADS):
            yield from threads.map(read, range(start, min(start + READ_THREADS, len(parts))))
