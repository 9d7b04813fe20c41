"""The metadata of an image folder, as Hugging Face's ImageFolder has it: `metadata.csv`, `.jsonl` or `.parquet` at its top.

A row belongs to the image that its `file_name` names, relative to the file
(https://huggingface.co/docs/datasets/image_dataset#imagefolder). All rows are kept in memory.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.columns.column import NO_VALUE, Column, fields_of, type_of
from tlray.columns.inference import wider
from tlray.errors import SourceError
from tlray.lake.source.listing.carried import carried_fields, carried_values, types_in
from tlray.lake.source.listing.json_lines import json_lines, read_object
from tlray.lake.source.listing.manifest import URI_COLUMNS, resolve_entry
from tlray.lake.source.listing.table_file import ending_of, open_table_file
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import join

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_NAME_COLUMN = "file_name"
_LINES_AT_ONCE = 10_000


class Metadata:
    """The values of columns by the URI of their image.

    Args:
        uri: of the file.
        uris: of the images that its rows name.
        values: of the columns, one row for each.

    Raises:
        SourceError: an image is named twice.
    """

    def __init__(self, uri: str, uris: Sequence[str], values: pa.Table) -> None:
        self.uri = uri
        self._values = values
        self._position_of = {name: position for position, name in enumerate(uris)}
        if len(self._position_of) < len(uris):
            seen: set[str] = set()
            twice = next(name for name in uris if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise SourceError(f"{uri} names {twice} twice; keep one row an image")
        self._is_used = np.zeros(len(uris), bool)
        self._without = 0

    def join(self, page: pa.Table) -> pa.Table:
        """Listed images with their values; null where no row is of them."""
        positions = [self._position_of.get(name) for name in page["uri"].to_pylist()]
        at = pa.array(positions, pa.int64())
        self._is_used[at.drop_null().to_numpy()] = True
        self._without += at.null_count
        for field in self._values.schema:
            page = page.append_column(field, self._values[field.name].take(at))
        return page

    def unmatched(self) -> list[str]:
        """What there is to say once all images are listed; the count begins anew."""
        rows = int(np.count_nonzero(~self._is_used))
        lines = [f"{self._without} listed images have no row in {self.uri}: null in its columns"] if self._without else []
        lines += [f"{rows} rows of {self.uri} name no listed image"] if rows else []
        self._is_used[:], self._without = False, 0
        return lines


def find_metadata(folder: str) -> str:
    """The URI of a folder's metadata file.

    Raises:
        SourceError: there is none, or there are several.
    """
    there = [join(folder, name) for name in NAMES if open_store(folder).stat(join(folder, name)) is not None]
    if len(there) != 1:
        raise SourceError(
            f"{folder} has {len(there) or 'no'} files of metadata, expected one of {', '.join(NAMES)} at its top, with a "
            f"column {_NAME_COLUMN} and those of source.columns; or name a manifest that has them"
        )
    return there[0]


class MetadataFile:
    """A metadata file of any of the three kinds.

    Args:
        uri: of the file.

    Attributes:
        columns: names of its columns, but for that of the images' names.

    Raises:
        SourceError: it cannot be read, or has no column of names.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._is_json = ending_of(uri) == ".jsonl"
        self._file = None if self._is_json else open_table_file(uri)
        names = list(self._file.columns) if self._file is not None else _field_names(uri)
        found = next((name for name in (_NAME_COLUMN, *URI_COLUMNS) if name in names), None)
        if found is None:
            raise SourceError(f"{uri} has no column {_NAME_COLUMN}; its columns are {', '.join(names) or 'none'}")
        self._name_column = found
        self.columns = [name for name in names if name != found]

    def types(self, names: Sequence[str]) -> dict[str, str | None]:
        """The types of some columns; `null` where no value is, None where it is one that does not travel."""
        if self._file is None:
            return _types_of_fields(self.uri, names)
        return types_in(self._file, names)

    def read(self, columns: Sequence[Column]) -> Metadata:
        """Read the columns that are to travel, by image.

        Raises:
            SourceError: a value is not of its column's type, a row names no image, or one image is named twice.
        """
        schema = pa.schema(fields_of(columns))
        batches = list(self._json_batches(columns) if self._file is None else self._table_batches(columns))
        names = [name for some, _ in batches for name in some]
        folder = self.uri.rpartition("/")[0]
        uris = [resolve_entry(folder, name, self.uri, row) for row, name in enumerate(names)]
        values = [pa.table(arrays, schema=schema) for _, arrays in batches]
        return Metadata(self.uri, uris, pa.concat_tables([schema.empty_table(), *values]))

    def _table_batches(self, columns: Sequence[Column]) -> Iterator[tuple[list[str | None], list[pa.Array]]]:
        assert self._file is not None
        row = 0
        for batch in self._file.batches([self._name_column, *(column.name for column in columns)]):
            yield batch[self._name_column].cast(pa.string()).to_pylist(), carried_values(batch, columns, self.uri, row)
            row += len(batch)

    def _json_batches(self, columns: Sequence[Column]) -> Iterator[tuple[list[str | None], list[pa.Array]]]:
        row = 0
        for documents in _documents(self.uri):
            names = [document.get(self._name_column) for document in documents]
            values = carried_fields(documents, columns, self.uri, row)
            yield [name if isinstance(name, str) else None for name in names], values
            row += len(documents)


def _documents(uri: str) -> Iterator[list[dict[str, Any]]]:
    """The objects of a file of JSON lines, some at a time.

    Raises:
        SourceError: a line is none.
    """
    some: list[dict[str, Any]] = []
    for number, line in enumerate(json_lines(uri), start=1):
        try:
            some.append(read_object(line))
        except (ValueError, RecursionError) as error:
            raise SourceError(
                f"{uri}, line {number} (blank ones not counted) is no JSON object in UTF-8: {error}; expected one with "
                f"{_NAME_COLUMN} in each line"
            ) from error
        if len(some) >= _LINES_AT_ONCE:
            yield some
            some = []
    if some:
        yield some


def _field_names(uri: str) -> list[str]:
    return list(dict.fromkeys(name for some in _documents(uri) for document in some for name in document))


def _types_of_fields(uri: str, names: Sequence[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = dict.fromkeys(names, NO_VALUE)
    for documents in _documents(uri):
        for name in names:
            before = found[name]
            here = type_of_values([document.get(name) for document in documents])
            found[name] = None if before is None or here is None else wider(before, here)
    return found


def type_of_values(values: Sequence[Any]) -> str | None:
    """The type that holds all of some values of JSON; `null` where there is none, None where no type does."""
    try:
        return type_of(pa.array(values).type)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return None
