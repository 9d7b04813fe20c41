"""What goes into a search and what comes out of it: queries, and hits as records for people and programs.

Shape legend: B queries, K neighbours, D dimensions.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.errors import QueryError
from tlray.search.rows.row_table import RowTable

ANSWER_SCHEMA = pa.schema(
    [
        pa.field("query", pa.string()),
        pa.field("rank", pa.int32()),
        pa.field("uri", pa.string()),
        pa.field("label", pa.string()),
        pa.field("score", pa.float32()),
    ]
)
"""A file of answers, one row a hit; `rank` counts from 0."""


@dataclass(frozen=True)
class Hit:
    """One row of the index that a query found.

    Attributes:
        rank: 0 for the nearest.
        uri: of the image.
        label: of the image, None where it has none.
        score: cosine or inner product, larger for nearer ones; or L2 distance, smaller for nearer ones.
        id: of the row in its index.
    """

    rank: int
    uri: str
    label: str | None
    score: float
    id: int

    def to_dict(self) -> dict[str, Any]:
        """The hit as the command's JSON has it: its place in the list is its rank."""
        fields = asdict(self)
        del fields["rank"]
        return fields


@dataclass(frozen=True)
class Hits:
    """Answers to B queries.

    Attributes:
        rows: the index's rows.
        positions_BK: in `rows`, nearest first; -1 where there are fewer.
        scores_BK: cosine, inner product, or L2 distance.
    """

    rows: RowTable
    positions_BK: np.ndarray
    scores_BK: np.ndarray

    def records(self) -> list[list[Hit]]:
        """The hits of each query, nearest first."""
        uris, labels, ids = self.rows.table["uri"], self.rows.table["label"], self.rows.ids_N
        return [
            [
                Hit(rank, uris[at].as_py(), labels[at].as_py(), float(score), int(ids[at]))
                for rank, (at, score) in enumerate(zip(positions_K.tolist(), scores_K.tolist(), strict=True))
                if at >= 0
            ]
            for positions_K, scores_K in zip(self.positions_BK, self.scores_BK, strict=True)
        ]

    def to_lists(self) -> list[list[dict[str, Any]]]:
        """The hits of each query as the command's JSON has them: uri, label, score, id."""
        return [[hit.to_dict() for hit in hits] for hits in self.records()]

    def to_table(self, names: Sequence[str]) -> pa.Table:
        """All hits as ANSWER_SCHEMA.

        Args:
            names: of the queries.
        """
        there_BK = self.positions_BK >= 0
        query_of, rank_of = np.nonzero(there_BK)
        found = self.rows.table.select(["uri", "label"]).take(pa.array(self.positions_BK[there_BK]))
        columns = [
            pa.array(names, pa.string()).take(pa.array(query_of)),
            pa.array(rank_of, pa.int32()),
            found["uri"],
            found["label"],
            pa.array(self.scores_BK[there_BK], pa.float32()),
        ]
        return pa.table(columns, schema=ANSWER_SCHEMA)


def as_queries(given_BD: np.ndarray, dimensions: int) -> np.ndarray:
    """Queries as contiguous float32 of their own.

    Args:
        given_BD: numbers of any type.
        dimensions: D.

    Raises:
        QueryError: vectors of another shape, not numbers, not finite, or too long for float32.
    """
    expected = f"expected (B, {dimensions}) numbers"
    try:
        given_BD = np.asarray(given_BD)
        if given_BD.dtype.kind not in "fiub":
            raise QueryError(f"queries are of the type {given_BD.dtype}; {expected}")
        with np.errstate(over="ignore"):  # what becomes infinite is refused below
            queries_BD = np.array(given_BD, np.float32, order="C")
    except ValueError as error:
        raise QueryError(f"queries are no array: {error}; {expected}") from error
    if queries_BD.ndim != 2 or queries_BD.shape[1] != dimensions:
        raise QueryError(f"queries have the shape {queries_BD.shape}; {expected}")
    # Quicker than to look at each value, and it finds vectors, too, that are too long to be compared.
    if not math.isfinite(np.vdot(queries_BD, queries_BD)):
        is_bad_B = ~np.isfinite(np.einsum("ij,ij->i", queries_BD, queries_BD))
        which = f"query {is_bad_B.argmax()} (from 0)" if is_bad_B.any() else "a query"
        raise QueryError(f"{which} has values that are not finite, or whose squares are not; expected finite floats")
    return queries_BD
