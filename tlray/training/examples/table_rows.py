"""The rows of a table that there are to train on, and the vectors of those that became examples.

Shape legend: T rows of the table in the order of its parts, N examples, D length of a vector.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.errors import ExamplesError, ObjectNotFoundError, TableError
from tlray.lake.table.parts import READ_THREADS, Part, read_part, vectors_of
from tlray.lake.table.table import Table


@dataclass(frozen=True)
class TableRows:
    """The rows of a table that have vectors, in order of URI, however they lie in its parts.

    Attributes:
        table: at the version that is trained on.
        parts: that hold them, in order of path.
        items: of each row its `uri`, `etag` and `label`, as the parts have them; T.
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
            example_T, int64, in the order of the parts: the number of the example, or -1.
        """
        example_T = np.full(len(self.place_T), -1, np.int64)
        example_T[self.place_T[rows_N]] = np.arange(len(rows_N))
        return example_T


def read_rows(table: Table) -> TableRows:
    """Read which rows a table has; no vectors yet.

    Raises:
        ExamplesError: there are none.
        TableError: a part is gone: the table moved on and was vacuumed.
    """
    parts = tuple(sorted(table.parts("ok"), key=lambda part: part.path))
    if not sum(part.rows for part in parts):
        raise ExamplesError(f"{table.uri} has no row with a vector; run `tlray extract` first")
    with ThreadPoolExecutor(READ_THREADS, "rows") as threads:
        items = pa.concat_tables(threads.map(lambda part: read_columns(table, part, ("uri", "etag", "label")), parts))
    order_T = pc.sort_indices(items["uri"])
    return TableRows(table, parts, items.take(order_T).combine_chunks(), order_T.to_numpy().astype(np.int64))


def read_columns(table: Table, part: Part, columns: Sequence[str]) -> pa.Table:
    """Some columns of a part.

    Raises:
        TableError: it is gone.
    """
    try:
        return read_part(table.uri, part.path, columns)
    except ObjectNotFoundError as error:
        raise vacuumed(table.uri, part) from error


def read_vectors(rows: TableRows, column: str, rows_N: np.ndarray, into_ND: np.ndarray) -> None:
    """Read the vectors of examples.

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
