"""The texts of rows of an index, read out of its table by row; never by an address that somebody sends."""

import threading
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate

import pyarrow as pa

from tlray.errors import ObjectNotFoundError, QueryError, TableError
from tlray.lake.table.parts import open_part
from tlray.recipe import RecipeFile, TextRecipe
from tlray.search.rows.row_table import RowTable

KEPT_BYTES = 64 * 2**20
"""How many bytes of texts are kept, those of whole row groups: a page shows rows that are near each other in meaning, not in
the table."""


class RowTexts:
    """Reads texts and keeps the latest; from many threads.

    Args:
        table_uri: of the table of texts.
    """

    def __init__(self, table_uri: str) -> None:
        self._table_uri = table_uri
        self._kept: OrderedDict[tuple[str, int], pa.ChunkedArray] = OrderedDict()
        self._firsts: dict[str, list[int]] = {}  # by part, the rows at which its row groups begin; two or three numbers a part
        self._size_bytes = 0
        self._lock = threading.Lock()

    @classmethod
    def of(cls, file: RecipeFile, table_uri: str) -> "RowTexts | None":
        """The texts of a table; None of one of images."""
        return cls(table_uri) if isinstance(file.recipe, TextRecipe) else None

    def get(self, rows: RowTable, position: int) -> str:
        """The text that a row of the index was made from.

        Args:
            rows: of the index.
            position: of the row in them.

        Raises:
            QueryError: the table has moved on and was vacuumed, so that the row is not where the index knows it.
            StorageError, AccessError: the store failed or refused.
        """
        part, row = rows.table["part"][position].as_py(), rows.table["row"][position].as_py()
        try:
            return self._read(part, row)
        except (ObjectNotFoundError, IndexError, TableError) as error:
            raise QueryError(f"{self._table_uri} has no part {part} any more: run `tlray index` again") from error

    def _read(self, part: str, row: int) -> str:
        with self._lock:
            firsts = self._firsts.get(part, [])
            group = bisect_right(firsts, row) - 1
            texts = self._kept.get((part, group))
        if texts is None:
            with open_part(self._table_uri, part) as file:
                counts = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
                firsts = list(accumulate(counts, initial=0))
                if row >= firsts.pop():
                    raise IndexError(row)
                group = bisect_right(firsts, row) - 1
                texts = file.read_row_group(group, ["text"])["text"]
            self._keep(part, group, firsts, texts)
        return str(texts[row - firsts[group]].as_py())

    def _keep(self, part: str, group: int, firsts: list[int], texts: pa.ChunkedArray) -> None:
        with self._lock:
            self._firsts[part] = firsts
            if (part, group) not in self._kept:
                self._kept[part, group] = texts
                self._size_bytes += texts.nbytes
            while self._size_bytes > KEPT_BYTES and len(self._kept) > 1:
                self._size_bytes -= self._kept.popitem(last=False)[1].nbytes
