"""What columns the tables of texts of a source have, and of which types their values are.

A column of CSV and TSV files is of the narrowest type that all cells of all files are of; JSON lines are read whole likewise,
but for columns whose types are known, where reading ends once all of them were seen.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from tlray.columns.column import NO_VALUE, type_of
from tlray.columns.inference import TextTypes, wider
from tlray.config import SourceConfig
from tlray.lake.source.listing.json_lines import json_lines, read_object
from tlray.lake.source.listing.metadata import type_of_values
from tlray.lake.source.listing.table_file import ending_of
from tlray.lake.source.texts.rows import BATCH_ROWS, BLOCK_BYTES, JSON_ENDINGS, open_rows


class RowColumns:
    """The columns of tables of texts, file by file.

    Args:
        config: of the source.
        wanted: names of columns that are asked for; empty for all of them.
        untyped: of some names, those whose types are to be looked for.

    """

    def __init__(
        self, config: SourceConfig, wanted: Collection[str], untyped: Callable[[Sequence[str]], Sequence[str]]
    ) -> None:
        self._config, self._wanted, self._untyped = config, wanted, untyped
        self._cells: dict[str, TextTypes] = {}
        self._types: dict[str, str | None] = {}
        self._having: dict[str, int] = {}
        self._files = 0

    @property
    def names(self) -> list[str]:
        """Names of all columns, that of the texts among them; of JSON lines the fields."""
        return list(self._having)

    @property
    def lacking(self) -> dict[str, int]:
        """How many CSV, TSV and Parquet files do not have a column, by name, where some do not."""
        return {name: self._files - count for name, count in self._having.items() if count < self._files}

    @property
    def types(self) -> dict[str, str | None]:
        """Types by name, of untyped columns and those of Parquet files; as `type_of` has them."""
        found = dict(self._types)
        for name, cells in self._cells.items():
            found[name] = _wider(found.get(name, NO_VALUE), cells.found)
        return found

    def add(self, uri: str) -> None:
        """Look into a file for its columns and their types.

        Raises:
            SourceError: it is not what its ending says.
            StorageError: the store failed.
        """
        if ending_of(uri) in JSON_ENDINGS:
            self._add_lines(uri)
            return
        file = open_rows(uri, self._config)
        self._files += 1
        for name in dict.fromkeys(file.columns):
            self._having[name] = self._having.get(name, 0) + 1
        asked = [name for name in self._beside(file.columns) if not self._wanted or name in self._wanted]
        untyped = self._untyped(asked)
        if file.schema is not None:
            file.check_once(asked)
            for name in asked:
                self._add_type(name, type_of(file.schema.field(name).type))
        elif untyped:
            for batch in file.batches(untyped, block_bytes=BLOCK_BYTES):
                for name in untyped:
                    self._cells.setdefault(name, TextTypes()).add(batch[name])

    def _add_lines(self, uri: str) -> None:
        is_typed = bool(self._wanted) and not self._untyped(list(self._wanted))
        for documents in _objects(uri, self._config):
            for name in dict.fromkeys(name for document in documents for name in document):
                self._having.setdefault(name, 0)
            for name in self._untyped(self._beside(self._having)):
                self._add_type(name, type_of_values([document.get(name) for document in documents]))
            if is_typed and self._having.keys() >= set(self._wanted):
                return

    def _beside(self, names: Iterable[str]) -> list[str]:
        """Names but for that of the texts, each once."""
        return [name for name in dict.fromkeys(names) if name != self._config.text]

    def _add_type(self, name: str, word: str | None) -> None:
        self._types[name] = _wider(self._types.get(name, NO_VALUE), word)


def _wider(one: str | None, other: str | None) -> str | None:
    return None if one is None or other is None else wider(one, other)


def _objects(uri: str, config: SourceConfig) -> Iterator[list[dict[str, Any]]]:
    """The lines of a file that are objects of JSON, some at a time; the others become failed rows when they are read."""
    lines = json_lines(uri, config.max_image_bytes)
    while some := list(islice(lines, BATCH_ROWS)):
        documents = []
        for line in some:
            try:
                documents.append(read_object(line, config.encoding))
            except (ValueError, RecursionError):
                continue
        yield documents
