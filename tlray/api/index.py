"""`tlray.Index`: searches an index in Python.

Shape legend: B queries, D length of a vector.
"""

import copy
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tlray.api.display.html import galleries, rows_of
from tlray.api.embedding.images import each_image, name_of
from tlray.api.embedding.networks import Placement, of_table
from tlray.api.embedding.running import Runner
from tlray.api.keywords import texts
from tlray.errors import ConfigError, QueryError
from tlray.lake.storage.uri import to_uri
from tlray.recipe import of_images
from tlray.search.query.hits import Hit, Hits
from tlray.search.query.searcher import Searcher
from tlray.search.rows.row_texts import RowTexts
from tlray.search.rows.selection import Filter
from tlray.search.rows.shown_columns import shown_fields

if TYPE_CHECKING:
    import pandas as pd

_SHOWN_HITS = 10
_SHOWN_QUERIES = 10
_SHOWN_CHARACTERS = 120


@dataclass(frozen=True)
class Answer:
    """What an index found for one query.

    Attributes:
        query: the query in words: an address, a label, its own text, or the position of what was given.
        hits: nearest first; each has `uri`, `label`, `score`, `rank` and `id`, and `columns`, values by name, where some were
            asked for.
    """

    query: str
    hits: tuple[Hit, ...]

    def to_dict(self) -> dict[str, Any]:
        """The answer as the command's JSON has it."""
        return {"query": self.query, "hits": [hit.to_dict() for hit in self.hits]}


class Answers(Sequence[Answer]):
    """The answers to some queries, in their order; a notebook shows their thumbnails.

    Args:
        about: what the index is.
        answers: one a query.
        found: the same as arrays.
        shown: the columns that were asked for.
        texts: of the rows, where they are texts.
    """

    def __init__(
        self,
        about: dict[str, Any],
        answers: Sequence[Answer],
        found: Hits,
        shown: Sequence[pa.Field] | None = None,
        texts: RowTexts | None = None,
    ) -> None:
        self._about, self._answers, self._found = about, tuple(answers), found
        self._shown, self._texts = shown, texts

    def __len__(self) -> int:
        return len(self._answers)

    def __getitem__(self, position: Any) -> Any:
        return self._answers[position]

    def __iter__(self) -> Iterator[Answer]:
        return iter(self._answers)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of `tlray search`, without what only the command can say (its time)."""
        return {**copy.deepcopy(self._about), "answers": [answer.to_dict() for answer in self]}

    def to_pandas(self) -> "pd.DataFrame":
        """All hits, one row each: query, rank, uri, label, score, and the columns that were asked for."""
        return self._found.to_table([answer.query for answer in self], self._shown).to_pandas()

    def __repr__(self) -> str:
        return f"<tlray.Answers to {len(self)} queries: {', '.join(answer.query for answer in self[:_SHOWN_QUERIES])}>"

    def _repr_html_(self) -> str:
        if self._texts is not None:
            return "".join(rows_of(answer.query, self._lines(number)) for number, answer in enumerate(self[:_SHOWN_QUERIES]))
        return galleries(
            (answer.query, [(hit.uri, None, f"{hit.score:.3f} {_said(hit)}") for hit in answer.hits[:_SHOWN_HITS]])
            for answer in self[:_SHOWN_QUERIES]
        )

    def _lines(self, number: int) -> list[dict[str, Any]]:
        """The first hits of a query, with how their texts begin."""
        assert self._texts is not None
        rows, hits = self._found.rows, self._answers[number].hits[:_SHOWN_HITS]
        texts = [self._texts.get(rows, int(position)) for position in self._found.positions_BK[number][: len(hits)]]
        return [
            {"score": hit.score, "label": _said(hit), "text": text[:_SHOWN_CHARACTERS]}
            for hit, text in zip(hits, texts, strict=True)
        ]


def _said(hit: Hit) -> str:
    """The label of a hit, and the columns that were asked for."""
    return ", ".join([*filter(None, [hit.label]), *(f"{name} {value}" for name, value in (hit.columns or {}).items())])


class Index:
    """An index at one version, ready for searches from many threads.

    Args:
        uri: URI or path.
        version: default the newest.
        device: where query images are embedded: `auto` or a name that torch knows.
        batch_size: query images of one forward pass; more for many at once.

    Raises:
        IndexMissingError: there is none, or no such version.
        IndexCorruptError: a file is not what the index's card says.
    """

    def __init__(
        self, uri: str | os.PathLike[str], version: int | None = None, *, device: str = "auto", batch_size: int = 1
    ) -> None:
        self.uri = to_uri(os.fspath(uri))
        self._searcher = Searcher.open(self.uri, version)
        self._placement = Placement(device, batch_size)
        self._texts = RowTexts.of(self._searcher.recipe_file, self.table)
        self._lock = threading.Lock()
        self._runner: Runner | None = None

    @property
    def version(self) -> int:
        """The version of the index that was opened."""
        return self._searcher.card.version

    @property
    def table(self) -> str:
        """URI of the table that it is of."""
        return self._searcher.card.table

    @property
    def about(self) -> dict[str, Any]:
        """What it is: version, table, recipe, rows, dimensions, metric, factory and its measured recall."""
        return {"index": self.uri, **self._searcher.about}

    @property
    def columns(self) -> dict[str, str]:
        """What `where` and `columns` may name: columns of the table, and their types."""
        return dict(self._searcher.columns)

    def search(
        self,
        image: Any = None,
        *,
        text: str | Sequence[str] | None = None,
        uri: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        by_label: str | Sequence[str] | None = None,
        vector: Any = None,
        k: int = 10,
        label: str | Sequence[str] = (),
        prefix: str | Sequence[str] = (),
        where: str = "",
        columns: str | Sequence[str] = (),
    ) -> Answers:
        """The nearest rows to images, texts, rows, labels or vectors; one of these kinds a call.

        Args:
            image: pictures to search by, in any form that `tlray.Encoder` takes; they are embedded by the encoder that made
                the table, checked by its golden vectors.
            text: words to search by, where the table's backbone has a text tower, which is checked by its own golden vectors.
            uri: rows of the index to search by, each left out of its own answer.
            by_label: search by the mean vector of each of these labels.
            vector: queries_BD or one vector of length D, as the table's encoder gives them.
            k: answers to each query.
            label: only rows with one of these labels.
            prefix: only rows whose URI begins with one of these.
            where: only rows of which this holds, such as `price < 10 and site = 'A'`; `Index.columns` are what it may
                name.
            columns: whose values each hit has, by name; `all` for each that travelled into the table.

        Raises:
            WhereError: `where` cannot be read, or names a column that is not there.
            ConfigError: none or several kinds of queries, or a text where there is no text tower.
            QueryError: an unknown uri, label or column, vectors of another length, or a k under 1.
            ImageError: an image cannot be used.
            GoldenMismatchError: this machine computes other numbers than the table holds.
        """
        kinds = {"image": image, "text": text, "uri": uri, "by_label": by_label, "vector": vector}
        given = [name for name, value in kinds.items() if value is not None]
        if len(given) != 1:
            raise ConfigError(f"expected one of {', '.join(kinds)}, given {' and '.join(given) or 'none'}")
        allowed = Filter(texts("label", label), texts("prefix", prefix), where)
        shown = shown_fields(self._searcher.rows, texts("columns", columns))
        self._searcher.count(allowed)  # both are refused before images are embedded
        names, found = getattr(self, f"_by_{given[0].removeprefix('by_')}")(kinds[given[0]], k, allowed)
        answers = [Answer(*each) for each in zip(names, map(tuple, found.records(shown)), strict=True)]
        return Answers(self.about, answers, found, shown, self._texts)

    def __len__(self) -> int:
        return len(self._searcher.rows)

    def __repr__(self) -> str:
        return f"<tlray.Index {self.uri}, version {self.version}, {len(self)} rows of {self.table}>"

    def _by_image(self, image: Any, k: int, where: Filter) -> tuple[list[str], Hits]:
        of_images(self._searcher.recipe_file.recipe)
        images = list(each_image(image))
        names = [each if isinstance(each, str) else name_of(position, each) for position, each in enumerate(images)]
        with self._lock:  # the network is loaded once
            self._runner = self._runner or of_table(self._searcher.recipe_file, self._searcher.card.column, self._placement)
        return names, self._searcher.search(self._runner.run(images, "raise"), k, where)

    def _by_text(self, text: Any, k: int, where: Filter) -> tuple[list[str], Hits]:
        names = list(texts("text", text))
        return names, self._searcher.search_texts(names, k, where)

    def _by_uri(self, uri: Any, k: int, where: Filter) -> tuple[list[str], Hits]:
        names = [os.fspath(each) for each in ([uri] if isinstance(uri, (str, os.PathLike)) else uri)]
        return names, self._searcher.search_uris([to_uri(name) for name in names], k, where)

    def _by_label(self, by_label: Any, k: int, where: Filter) -> tuple[list[str], Hits]:
        names = list(texts("by_label", by_label))
        centroids_BD = np.stack([self._searcher.centroid(name) for name in names])
        return names, self._searcher.search(centroids_BD, k, where)

    def _by_vector(self, vector: Any, k: int, where: Filter) -> tuple[list[str], Hits]:
        try:
            queries_BD = np.atleast_2d(np.asarray(vector, np.float32))
        except (ValueError, TypeError) as error:
            raise QueryError(f"vector: expected one vector or rows of them, given {vector!r:.200}") from error
        return [f"vector {number}" for number in range(len(queries_BD))], self._searcher.search(queries_BD, k, where)
