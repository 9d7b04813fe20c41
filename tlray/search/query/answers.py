"""Answers to a table of queries, as a table."""

from collections.abc import Sequence

import pyarrow as pa

from tlray.lake.table.parts import read_part, vectors_of
from tlray.search.query.searcher import Searcher
from tlray.search.rows.selection import Filter
from tlray.search.rows.shown_columns import shown_fields


def answer_part(searcher: Searcher, table_uri: str, path: str, k: int, where: Filter, columns: Sequence[str] = ()) -> pa.Table:
    """Every row of a part as a query.

    Args:
        searcher: of an index of the table's recipe.
        table_uri: the table of queries.
        path: of the part.
        k: answers to each.
        where: which rows may be found.
        columns: whose values are shown.
    """
    column = searcher.card.column
    rows = read_part(table_uri, path, ["uri", column])
    return searcher.search(vectors_of(rows[column]), k, where).to_table(
        rows["uri"].to_pylist(), shown_fields(searcher.rows, columns)
    )
