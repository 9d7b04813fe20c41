"""The values of columns that travel, out of the rows of manifests, listings, tables of texts and folders' metadata."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import pyarrow as pa

from tlray.columns.column import Column, type_of
from tlray.columns.inference import TextTypes
from tlray.columns.values import UnfitError, converted, fitting, from_texts
from tlray.errors import SourceError
from tlray.lake.source.listing.table_file import TableFile, ending_of

_SHOWN_CHARACTERS = 60


def carried_values(batch: pa.RecordBatch, columns: Sequence[Column], uri: str, row: int) -> list[pa.Array]:
    """The values of columns that travel, each in its column's type.

    Args:
        batch: rows of a file, with at least these columns; the cells of text files as strings.
        columns: that travel.
        uri: of the file, for messages.
        row: number of the first row from 0 up, likewise.

    Returns:
        For each column its values, of its type.

    Raises:
        SourceError: a value is not of its column's type.
    """
    return [_values(batch[column.name], column, uri, row) for column in columns]


def carried_fields(documents: Sequence[Mapping[str, Any]], columns: Sequence[Column], uri: str, row: int) -> list[pa.Array]:
    """The values of some columns, out of objects of JSON; null where one has no such field.

    Args:
        documents: lines of a file.
        columns: that travel.
        uri: of the file, for messages.
        row: number of the first line from 0 up, likewise.

    Returns:
        For each column its values, of its type.

    Raises:
        SourceError: a value is not of its column's type.
    """
    found = []
    for column in columns:
        values = [document.get(column.name) for document in documents]
        fits, unfit = fitting(values, column)
        if unfit:
            refuse(values[unfit[0]], column, f"{uri}, line {row + unfit[0] + 1} (blank ones not counted)")
        found.append(fits)
    return found


def _values(values: pa.Array, column: Column, uri: str, row: int) -> pa.Array:
    if ending_of(uri) != ".parquet" and column.type == "text":
        return from_texts(values, column.type)  # an empty cell is no text
    try:
        return converted(values, column)
    except UnfitError as error:
        refuse(error.value, column, f"{uri}, row {row + error.position + 1} (the header not counted)")


def refuse(value: object, column: Column, where: str) -> NoReturn:
    """Refuse a value that is not of its column's type.

    Raises:
        SourceError: always.
    """
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}..."
    raise SourceError(
        f"{where}: {column.name} is {shown}, expected {column.type}, as the column is; mend the value, or give the column "
        f"another type where it is new (source.columns {column.name}::text)"
    )


def types_in(file: TableFile, names: Sequence[str]) -> dict[str, str | None]:
    """The types of some columns of a table file, by its schema, or by all cells of a text file.

    Args:
        file: that has them.
        names: of the columns.

    Returns:
        The type by name: `null` where no value is, None where it is one that does not travel.
    """
    if file.schema is not None:
        return {name: type_of(file.schema.field(name).type) for name in names}
    if not names:
        return {}
    found = {name: TextTypes() for name in names}
    for batch in file.batches(names):
        for name, types in found.items():
            types.add(batch[name])
    return {name: types.found for name, types in found.items()}
