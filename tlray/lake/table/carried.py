"""Columns that travelled into a table, beside its own: in its schema, in parts that may have been written before them."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from tlray.columns.column import Column


def carried_columns(schema: pa.Schema, own: Iterable[str]) -> tuple[Column, ...]:
    """The columns of a table that travelled into it.

    Args:
        schema: of the table, as its log has it.
        own: names of the table's own columns.
    """
    others = [schema.field(name) for name in schema.names if name not in set(own)]
    return tuple(column for column in map(Column.of, others) if column is not None)


def with_fields(rows: pa.Table, fields: Sequence[pa.Field]) -> pa.Table:
    """Rows of a part in some columns, in order; a column that the part was written without is null."""
    there = set(rows.column_names)
    columns = [
        rows[field.name].cast(field.type) if field.name in there else pa.nulls(len(rows), field.type) for field in fields
    ]
    return pa.table(columns, schema=pa.schema(fields))


def with_carried(rows: pa.Table, fields: Sequence[pa.Field]) -> pa.Table:
    """Rows of a part with all columns that travelled into its table, behind the others and in order."""
    names = {field.name for field in fields}
    own = [field for field in rows.schema if field.name not in names]
    return with_fields(rows, [*own, *fields]) if fields else rows


def with_values(rows: pa.Table, at: np.ndarray, values: pa.Table) -> pa.Table:
    """Rows of a part with other values in some of them.

    Args:
        rows: N.
        at: positions of M of them.
        values: M rows of the columns that have other values; one that the part does not have comes behind its columns, null in
            the other rows.
    """
    source_N = np.arange(len(rows))
    source_N[at] = len(rows) + np.arange(len(at))
    taken = pa.array(source_N)
    for field in values.schema:
        position = rows.schema.get_field_index(field.name)
        before = rows.column(position) if position >= 0 else pa.chunked_array([pa.nulls(len(rows), field.type)])
        after = pa.chunked_array([*before.cast(field.type).chunks, *values[field.name].chunks], field.type).take(taken)
        rows = rows.append_column(field, after) if position < 0 else rows.set_column(position, field, after)
    return rows
