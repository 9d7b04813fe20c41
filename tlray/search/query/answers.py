"""Answers to a table of queries, as a table."""

import numpy as np
import pyarrow as pa

from tlray.lake.table.parts import read_part, vectors_of
from tlray.search.neighbours.row_table import Filter
from tlray.search.query.searcher import Hits, Searcher

ANSWER_SCHEMA = pa.schema(
    [
        pa.field("query", pa.string()),
        pa.field("rank", pa.int32()),
        pa.field("uri", pa.string()),
        pa.field("label", pa.string()),
        pa.field("score", pa.float32()),
    ]
)


def as_table(names: list[str], hits: Hits) -> pa.Table:
    """Hits as ANSWER_SCHEMA, one row a hit.

    Args:
        names: of the queries.
        hits: answers to them.
    """
    there_BK = hits.positions_BK >= 0
    at = pa.array(hits.positions_BK[there_BK])
    query_of, rank_of = np.nonzero(there_BK)
    found = hits.rows.table.select(["uri", "label"]).take(at)
    columns = [
        pa.array(names, pa.string()).take(pa.array(query_of)),
        pa.array(rank_of, pa.int32()),
        found["uri"],
        found["label"],
        pa.array(hits.scores_BK[there_BK], pa.float32()),
    ]
    return pa.table(columns, schema=ANSWER_SCHEMA)


def answer_part(searcher: Searcher, table_uri: str, path: str, k: int, where: Filter) -> pa.Table:
    """Every row of a part as a query.

    Args:
        searcher: of an index of the table's recipe.
        table_uri: the table of queries.
        path: of the part.
        k: answers to each.
        where: which rows may be found.
    """
    column = searcher.card.column
    rows = read_part(table_uri, path, ["uri", column])
    return as_table(rows["uri"].to_pylist(), searcher.search(vectors_of(rows[column]), k, where))
