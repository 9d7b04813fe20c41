"""A condition on the columns of rows, as users write it, read once and asked of any number of rows.

The text is read by sqlglot, as DuckDB would read it, into a tree; a list says which of its nodes are allowed, each of which is
one or a few functions of Arrow. Nothing else is carried out, so a condition cannot do more than compare values.

Shape legend: N rows.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from tlray.columns.column import NO_VALUE, type_of
from tlray.errors import WhereError, first_line
from tlray.where.terms import Compute

BATCH_ROWS = 65_536
"""Rows that are asked at once, which bounds what is computed in between."""


class Condition:
    """A condition that was read and checked; `read_condition` makes one.

    Args:
        text: as it was given.
        columns: names of the columns that it asks.
        compute: gives booleans, null where SQL would.
    """

    def __init__(self, text: str, columns: Iterable[str], compute: Compute) -> None:
        self.text = text
        self.columns = tuple(columns)
        self._compute = compute

    def mask(self, rows: pa.Table) -> np.ndarray:
        """Which rows fulfil it; null counts as not, as in SQL.

        Args:
            rows: N, with at least its columns.

        Returns:
            N bools.

        Raises:
            WhereError: a number in it, or computed by it, is too large.
        """
        masks = [np.empty(0, bool)]
        # With no column there is no length: a condition such as `true` asks none.
        asked = rows.select(self.columns) if self.columns else rows.select(rows.column_names[:1])
        for batch in asked.to_batches(max_chunksize=BATCH_ROWS):
            try:
                found = self._compute(batch)
            except pa.ArrowException as error:
                raise WhereError(f"where: {self.text!r} cannot be computed: {first_line(error)}") from error
            if isinstance(found, pa.Scalar):
                masks.append(np.full(len(batch), found.as_py() is True))
            else:
                masks.append(np.asarray(found.fill_null(False), bool))
        return np.concatenate(masks)


def read_condition(text: str, fields: Iterable[pa.Field], what: str) -> Condition:
    """Read a condition, and check its names and types.

    Args:
        text: of the condition.
        fields: of the rows that it will be asked of.
        what: has these columns, for messages: `the index s3://b/x`.

    Raises:
        WhereError: it cannot be read, or names a column that is not there, or compares what cannot be compared.
    """
    from tlray.where.grammar import read  # sqlglot, only where a condition is given

    types = {field.name: word for field in fields if (word := type_of(field.type)) not in (None, NO_VALUE)}
    return Condition(text, *read(text, types, what))
