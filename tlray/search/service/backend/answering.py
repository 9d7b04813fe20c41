"""From the queries of a request to vectors, and from what was found to the response."""

from collections.abc import Iterator, Sequence

import numpy as np

from tlray.errors import QueryError
from tlray.search.query.hits import Hits
from tlray.search.query.searcher import Searcher
from tlray.search.rows.shown_columns import shown_fields
from tlray.search.service.backend.schema import Hit, Query, Row, SearchResponse


def vector_of(searcher: Searcher, query: Query, of_texts: Iterator[np.ndarray]) -> tuple[np.ndarray, int]:
    """A query's vector, and the position of the row that it is, or -1."""
    if query.text is not None:
        return next(of_texts), -1
    if query.vector is not None:
        if len(query.vector) != searcher.card.dimensions:
            raise QueryError(f"a vector has {len(query.vector)} floats; expected {searcher.card.dimensions}")
        return np.array(query.vector, np.float32), -1
    if query.label is not None:
        return searcher.centroid(query.label), -1
    if query.uri is not None:
        position = searcher.rows.position_of_uri(query.uri)
    else:
        position = int(searcher.rows.positions(np.array([query.id]))[0])
        if position < 0:
            raise QueryError(f"the index has no row {query.id}")
    return searcher.vectors(np.array([position]))[0], position


def response_of(searcher: Searcher, hits: Hits, queries: Sequence[int], columns: Sequence[str]) -> SearchResponse:
    """What the service answers to a search.

    Args:
        searcher: that found them.
        hits: of all queries.
        queries: position of the row that each query is; -1 where it is none.
        columns: whose values are shown.
    """
    shown = shown_fields(searcher.rows, columns)
    found = Hits(searcher.rows, np.array(queries)[:, None], np.zeros((len(queries), 1), np.float32)).to_lists(shown)
    return SearchResponse(
        version=searcher.card.version,
        metric=searcher.card.metric,
        queries=[Row(**{k: v for k, v in row[0].items() if k != "score"}) if row else None for row in found],
        answers=[[Hit(**hit) for hit in each] for each in hits.to_lists(shown)],
    )
