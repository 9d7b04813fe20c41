"""What a search found: rows of the index with their scores, as records, as JSON has them, or as a table.

Shape legend: B queries, K neighbours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.errors import QueryError
from tlray.search.rows.row_table import RowTable
from tlray.search.rows.shown_columns import in_json, records_at, values_at

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


def answer_schema(shown: Sequence[pa.Field] | None) -> pa.Schema:
    """ANSWER_SCHEMA, and after it the columns that are shown.

    Raises:
        QueryError: one of these has the name of one of the answers' own.
    """
    more = [each for each in shown or () if each.name not in ("uri", "label")]  # which are there
    taken = {name.lower() for name in ANSWER_SCHEMA.names}
    if odd := [each.name for each in more if each.name.lower() in taken]:
        raise QueryError(
            f"columns: a file or frame of answers has a column {odd[0]} of its own, beside "
            f"{', '.join(name for name in ANSWER_SCHEMA.names if name != odd[0].lower())}; leave the table's out"
        )
    return pa.schema([*ANSWER_SCHEMA, *more])


@dataclass(frozen=True)
class Hit:
    """One row of the index that a query found.

    Attributes:
        rank: 0 for the nearest.
        uri: of the image.
        label: of the image, None where it has none.
        score: cosine or inner product, larger for nearer ones; or L2 distance, smaller for nearer ones.
        id: of the row in its index.
        columns: values by name, of the columns that were asked for; None where none was.
    """

    rank: int
    uri: str
    label: str | None
    score: float
    id: int
    columns: Mapping[str, Any] | None = field(default=None, hash=False)

    def to_dict(self) -> dict[str, Any]:
        """The hit as the command's JSON has it: its place in the list is its rank."""
        fields = {"uri": self.uri, "label": self.label, "score": self.score, "id": self.id}
        return fields if self.columns is None else {**fields, "columns": in_json(self.columns)}


@dataclass(frozen=True)
class Hits:
    """What was found for each of B queries.

    Attributes:
        rows: the index's rows.
        positions_BK: in `rows`, nearest first; -1 where there are fewer.
        scores_BK: cosine, inner product, or L2 distance.
    """

    rows: RowTable
    positions_BK: np.ndarray
    scores_BK: np.ndarray

    def records(self, shown: Sequence[pa.Field] | None = None) -> list[list[Hit]]:
        """The hits of each query, nearest first.

        Args:
            shown: columns whose values they have (`tlray.search.rows.shown_columns`).
        """
        uris, labels, ids = self.rows.table["uri"], self.rows.table["label"], self.rows.ids_N
        found = self.positions_BK[self.positions_BK >= 0]
        columns = iter([None] * len(found) if shown is None else records_at(self.rows, shown, found))
        return [
            [
                Hit(rank, uris[at].as_py(), labels[at].as_py(), float(score), int(ids[at]), next(columns))
                for rank, (at, score) in enumerate(zip(positions_K.tolist(), scores_K.tolist(), strict=True))
                if at >= 0
            ]
            for positions_K, scores_K in zip(self.positions_BK, self.scores_BK, strict=True)
        ]

    def to_lists(self, shown: Sequence[pa.Field] | None = None) -> list[list[dict[str, Any]]]:
        """The hits of each query as the command's JSON has them: uri, label, score, id, and columns where some are shown."""
        return [[hit.to_dict() for hit in hits] for hits in self.records(shown)]

    def to_table(self, names: Sequence[str], shown: Sequence[pa.Field] | None = None) -> pa.Table:
        """All hits as an Arrow table of `answer_schema`.

        Args:
            names: of the queries.
            shown: columns whose values it has.
        """
        schema = answer_schema(shown)
        there_BK = self.positions_BK >= 0
        query_of, rank_of = np.nonzero(there_BK)
        own = {
            "query": pa.array(names, pa.string()).take(pa.array(query_of)),
            "rank": pa.array(rank_of, pa.int32()),
            "score": pa.array(self.scores_BK[there_BK], pa.float32()),
        }
        values = values_at(self.rows, [field for field in schema if field.name not in own], self.positions_BK[there_BK])
        return pa.table([own[name] if name in own else values[name] for name in schema.names], schema=schema)
