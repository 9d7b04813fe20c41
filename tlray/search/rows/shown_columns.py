"""Columns that are shown with the rows that a search finds.

Shape legend: M rows asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.columns.column import ALL, type_of
from tlray.columns.naming import meant, no_column
from tlray.errors import QueryError
from tlray.search.rows.row_table import ASKED, RowTable


def shown_fields(rows: RowTable, asked: Sequence[str]) -> list[pa.Field] | None:
    """The columns that are asked for, in that order.

    Args:
        rows: of the index.
        asked: their names, or `all` alone for each column that travelled.

    Returns:
        The columns; None where none is asked for.

    Raises:
        QueryError: there is no such column.
    """
    if not asked:
        return None
    if list(asked) == [ALL]:
        return [] if rows.columns is None else list(rows.columns.fields)
    fields = {field.name: field for field in rows.fields}
    names = {name: meant(name, fields) for name in asked}
    for name, found in names.items():
        if found is None:
            types = {field.name: str(type_of(field.type)) for field in rows.fields}
            raise QueryError(f"columns: {no_column('the index', name, types)}; {ALL} asks for each that travelled")
    return [fields[name] for name in dict.fromkeys(filter(None, names.values()))]


def values_at(rows: RowTable, fields: Sequence[pa.Field], positions_M: np.ndarray) -> pa.Table:
    """Values of some columns at M rows, which are given by position."""
    own = [field.name for field in fields if field.name in ASKED]
    others = [field.name for field in fields if field.name not in ASKED]
    found = {name: rows.table[name].take(pa.array(positions_M)) for name in own}
    if others and rows.columns is not None:
        found |= zip(others, rows.columns.take(others, positions_M).columns, strict=True)
    return pa.table([found[field.name] for field in fields], schema=pa.schema(fields))


def records_at(rows: RowTable, fields: Sequence[pa.Field], positions_M: np.ndarray) -> Iterator[dict[str, Any]]:
    """The values of each row by name, as Python's own."""
    columns = [map(_in_python, values) for values in values_at(rows, fields, positions_M).columns]
    names = [field.name for field in fields]
    for values in zip(*columns, strict=True) if names else [()] * len(positions_M):
        yield dict(zip(names, values, strict=True))


def _in_python(value: pa.Scalar) -> Any:
    """A value as Python has it; one for which it has none, as a date after the year 9999, as text."""
    try:
        return value.as_py()
    except OverflowError:
        is_list = isinstance(value, pa.ListScalar)
        return [_in_python(one) for one in value.values] if is_list else str(value.cast(pa.string()))


def in_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON has them: dates and times as ISO 8601, infinite numbers as texts."""
    return {name: _in_json(value) for name, value in values.items()}


def _in_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_in_json(one) for one in value]
    if isinstance(value, date):  # and a datetime, which is one
        return value.isoformat()
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value
