"""Search an index: by vectors, images, its own rows or labels, with filters.

Shape legend: B queries, K neighbours, D dimensions.
"""

import math
import tempfile
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tlray.errors import QueryError, RecipeMismatchError
from tlray.lake.storage.uri import to_uri
from tlray.lake.table.table import Table
from tlray.recipe import RecipeFile
from tlray.search.neighbours.exact import exact_neighbours
from tlray.search.neighbours.faiss_index import MAX_EF_SEARCH
from tlray.search.neighbours.metric import prepared, scores_of
from tlray.search.neighbours.parameters import Parameters
from tlray.search.query.hits import Hits
from tlray.search.rows.row_table import RowTable
from tlray.search.rows.selection import Filter
from tlray.search.versions.card import Card, read_card
from tlray.search.versions.exact_vectors import IndexVectors
from tlray.search.versions.load import LoadedIndex, load_index

if TYPE_CHECKING:
    from tlray.search.query.query_encoder import QueryEncoder

EXACT_ROWS = 10_000
"""Up to so many rows that a filter leaves, all of them are compared: graphs and lists find few neighbours among few rows."""
CENTROID_ROWS = 4096
"""Most rows that a label's mean is taken over, evenly spread: its error falls with the root of their number."""

_ABOUT = ("version", "table", "table_version", "recipe_id", "rows", "dimensions", "metric", "factory")
_FILTERS_KEPT = 32
_MORE = 4
"""Times more lists, where those looked into have fewer than k rows."""

EVERYTHING = Filter()


class Searcher:
    """One version of an index, ready for searches from many threads.

    Args:
        index: loaded.
        scratch: the folder that `index` may have files in; deleted with the searcher.
    """

    def __init__(self, index: LoadedIndex, scratch: "tempfile.TemporaryDirectory[str] | None" = None) -> None:
        self._index, self._scratch = index, scratch
        self._exact = IndexVectors(index.index, index.rows, index.stored, index.card.table, index.card.column)
        self._encoder_lock = threading.Lock()
        self._encoder: QueryEncoder | None = None
        self._allowed_by_filter: dict[Filter, np.ndarray] = {}

    @classmethod
    def open(cls, index: str, version: int | None = None) -> "Searcher":
        """Open an index.

        Args:
            index: URI or path.
            version: default the newest.

        Raises:
            IndexMissingError: there is none.
            IndexCorruptError: a file is not what the card says.
        """
        uri = to_uri(index)
        scratch = tempfile.TemporaryDirectory(prefix="tlray-searcher-")
        return cls(load_index(uri, read_card(uri, version), Path(scratch.name)), scratch)

    @property
    def card(self) -> Card:
        """What the index is."""
        return self._index.card

    @property
    def recipe_file(self) -> RecipeFile:
        """The recipe of its vectors, with the golden ones, as the index keeps it."""
        return self._index.recipe_file

    @property
    def rows(self) -> RowTable:
        """Its live rows."""
        return self._index.rows

    @property
    def exact(self) -> IndexVectors:
        """The live rows' vectors, prepared: of unit length where the metric is cosine."""
        return self._exact

    def vectors(self, positions_M: np.ndarray) -> np.ndarray:
        """The prepared vectors_MD of rows of the index, given by position: of unit length where the metric is cosine."""
        return self._exact.take(self.rows.ids_N[positions_M])

    @property
    def scores_are_exact(self) -> bool:
        """Whether scores come from the vectors themselves, not from codes of them."""
        return self._index.index.kind.is_exact or self.card.parameters.rerank > 1

    def table_version(self) -> int:
        """The table's newest version; the index is behind where its card has a lower one.

        Raises:
            RecipeMismatchError: at its place there is a table of another recipe now.
            TableError: there is none any more.
        """
        table = Table.open(self.card.table)
        if table.recipe_file.recipe_id != self.card.recipe_id:
            raise RecipeMismatchError(
                f"{self.card.table} now holds recipe {table.recipe_file.recipe_id[:12]}, but the index is of recipe "
                f"{self.card.recipe_id[:12]}; build another index of it"
            )
        return table.version

    def check_recipe(self, recipe_id: str) -> None:
        """Refuse vectors of another recipe.

        Raises:
            RecipeMismatchError: they are.
        """
        if recipe_id != self.card.recipe_id:
            raise RecipeMismatchError(
                f"the query was embedded by recipe {recipe_id[:12]}, but the index is of recipe {self.card.recipe_id[:12]}; "
                "embed it by the index's"
            )

    def encoder(self, **options: int) -> "QueryEncoder":
        """The network for query images, made at the first call and checked by the golden vectors.

        Raises:
            GoldenMismatchError: this machine computes other numbers.
        """
        with self._encoder_lock:
            if self._encoder is None:
                from tlray.search.query.query_encoder import QueryEncoder  # torch, only where images are searched by

                self._encoder = QueryEncoder(self._index.recipe_file, self.card.column, **options)
            return self._encoder

    def search_images(self, images: Sequence[bytes], k: int = 10, where: Filter = EVERYTHING) -> Hits:
        """Rows near images, each given as a file's bytes.

        Raises:
            ImageError: one of them cannot be used.
        """
        return self.search(self.encoder().embed(images), k, where)

    def search_rows(self, positions: np.ndarray, k: int = 10, where: Filter = EVERYTHING) -> Hits:
        """Rows near rows of the index, each query left out of its own answer."""
        return self.search(self.vectors(positions), k, where, leave_out_B=positions)

    def search_uris(self, uris: Sequence[str], k: int = 10, where: Filter = EVERYTHING) -> Hits:
        """Rows near those of some URIs.

        Raises:
            QueryError: the index has no such image.
        """
        return self.search_rows(np.array([self.rows.position_of_uri(uri) for uri in uris], np.int64), k, where)

    def centroid(self, label: str) -> np.ndarray:
        """The mean vector of a label's rows, of unit-length ones for cosine; shape (D,).

        Raises:
            QueryError: no row has it.
        """
        at = self.rows.positions_of_label(label)
        at = at[np.linspace(0, len(at) - 1, min(CENTROID_ROWS, len(at))).astype(np.int64)]
        mean_D: np.ndarray = self.vectors(at).mean(axis=0)
        return mean_D

    def search(
        self, queries_BD: np.ndarray, k: int = 10, where: Filter = EVERYTHING, *, leave_out_B: np.ndarray | None = None
    ) -> Hits:
        """Rows near vectors.

        Args:
            queries_BD: as the table's encoder gives them.
            k: how many rows.
            where: which may be found.
            leave_out_B: for each query the position of a row that its answer is not to have; -1 for none.

        Raises:
            QueryError: vectors of another shape, not finite, or too long for float32.
        """
        queries_BD = np.asarray(queries_BD, np.float32)
        if queries_BD.ndim != 2 or queries_BD.shape[1] != self.card.dimensions or k < 1:
            raise QueryError(
                f"queries have the shape {queries_BD.shape} and k is {k}; expected (B, {self.card.dimensions}) and k over 0"
            )
        # Quicker than to look at each value, and it finds vectors, too, that are too long to be compared.
        if not math.isfinite(np.vdot(queries_BD, queries_BD)):
            raise QueryError("a query has values that are not finite, or whose squares are not; expected finite floats")
        prepared_BD = prepared(queries_BD, self.card.metric)
        if leave_out_B is None:
            return self._search(prepared_BD, k, where)
        hits = self._search(prepared_BD, k + 1, where)
        out_BK = hits.positions_BK == leave_out_B[:, None]
        order_BK = np.argsort(out_BK | (hits.positions_BK < 0), axis=1, kind="stable")[:, :k]
        positions_BK = np.where(out_BK, -1, hits.positions_BK)
        take = np.take_along_axis
        return Hits(self.rows, take(positions_BK, order_BK, axis=1), take(hits.scores_BK, order_BK, axis=1))

    def _search(self, queries_BD: np.ndarray, k: int, where: Filter) -> Hits:
        rows = self.rows
        k = min(k, len(rows))
        if where:
            ids_BK, nearness_BK = self._search_filtered(queries_BD, k, where)
        else:
            allowed = self._allowed(where) if self.card.dead else None
            ids_BK, nearness_BK = self._find(queries_BD, k, self.card.parameters, allowed, len(rows))
        is_dense = len(rows) == self.card.next_id  # without removals an id is its row's position
        positions_BK = ids_BK if is_dense else rows.positions(ids_BK.reshape(-1)).reshape(ids_BK.shape)
        return Hits(rows, positions_BK, scores_of(nearness_BK, self.card.metric))

    def _find(
        self, queries_BD: np.ndarray, k: int, parameters: Parameters, allowed: np.ndarray | None, available: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search; and where lists held too few rows, look into more, or where a graph did not lead to enough, compare all."""
        index = self._index.index
        ids_BK, nearness_BK = index.search(queries_BD, k, parameters, self._exact, allowed)
        if k > available or not np.count_nonzero(ids_BK[:, -1] < 0):  # quicker than `any` for few
            return ids_BK, nearness_BK
        while (ids_BK[:, -1] < 0).any() and index.kind.lists > (parameters.nprobe or index.kind.lists):
            parameters = parameters.model_copy(update={"nprobe": min(index.kind.lists, _MORE * (parameters.nprobe or 1))})
            ids_BK, nearness_BK = index.search(queries_BD, k, parameters, self._exact, allowed)
        if index.kind.is_graph and self._vectors_at_hand:
            short_B = ids_BK[:, -1] < 0  # rows in tight clusters hang together in graphs of their own
            ids_BK[short_B], nearness_BK[short_B] = exact_neighbours(
                queries_BD[short_B], self._allowed_blocks(allowed), k, self.card.metric
            )
        return ids_BK, nearness_BK

    @property
    def _vectors_at_hand(self) -> bool:
        return self._index.index.kind.is_exact or self._index.stored is not None

    def _allowed_blocks(self, allowed: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for ids_B, vectors_BD in self._exact.blocks():
            keep_B = slice(None) if allowed is None else allowed[ids_B]
            yield ids_B[keep_B], vectors_BD[keep_B]

    def _search_filtered(self, queries_BD: np.ndarray, k: int, where: Filter) -> tuple[np.ndarray, np.ndarray]:
        allowed = self._allowed(where)
        ids = np.flatnonzero(allowed)
        if len(ids) <= EXACT_ROWS and self._vectors_at_hand:
            vectors_ND = self._exact.take(ids) if len(ids) else np.empty((0, queries_BD.shape[1]), np.float32)
            return exact_neighbours(queries_BD, [(ids, vectors_ND)], k, self.card.metric)
        wider = len(self.rows) / max(1, len(ids))
        given = self.card.parameters
        nprobe = None if given.nprobe is None else min(self._index.index.kind.lists, int(np.ceil(given.nprobe * wider)))
        ef_search = None if given.ef_search is None else min(MAX_EF_SEARCH, int(np.ceil(given.ef_search * wider)))
        parameters = Parameters(nprobe=nprobe, ef_search=ef_search, rerank=given.rerank)
        return self._find(queries_BD, k, parameters, allowed, len(ids))

    def _allowed(self, where: Filter) -> np.ndarray:
        allowed = self._allowed_by_filter.get(where)
        if allowed is None:
            allowed = np.zeros(self.card.next_id, bool)
            allowed[self.rows.ids_N[self.rows.mask(where)]] = True
            if len(self._allowed_by_filter) >= _FILTERS_KEPT:
                self._allowed_by_filter.clear()
            self._allowed_by_filter[where] = allowed
        return allowed

    @cached_property
    def about(self) -> dict[str, Any]:
        """What a person wants to know of it."""
        recall = {"recall_at_10": self.card.quality.recall_at_10, "measured_version": self.card.measured_version}
        return {name: getattr(self.card, name) for name in _ABOUT} | recall
