"""Search an index: by vectors, images, its own rows or labels, with filters.

Shape legend: B queries, K neighbours, D dimensions.
"""

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
from tlray.search.neighbours.exact import exact_neighbours, nearest_of, prepare, scores_of
from tlray.search.neighbours.faiss_index import MAX_EF_SEARCH
from tlray.search.neighbours.parameters import Parameters
from tlray.search.query.hits import Hits, as_queries
from tlray.search.rows.copies import NO_NODE
from tlray.search.rows.row_table import RowTable
from tlray.search.rows.selection import Filter, Selection
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
        self._selected_by: dict[Filter, tuple[Selection, Parameters]] = {}

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
        """The distinct vectors of the live rows by node, prepared: of unit length where the metric is cosine."""
        return self._exact

    def vectors(self, positions_M: np.ndarray) -> np.ndarray:
        """The prepared vectors_MD of rows of the index, given by position: of unit length where the metric is cosine."""
        nodes_M = self.rows.nodes_N[positions_M]
        if not (nodes_M == NO_NODE).any():
            return self._exact.take(nodes_M)
        vectors_MD = np.zeros((len(nodes_M), self.card.dimensions), np.float32)
        vectors_MD[nodes_M != NO_NODE] = self._exact.take(nodes_M[nodes_M != NO_NODE])
        return vectors_MD

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

    def search_labels(self, labels: Sequence[str], k: int = 10, where: Filter = EVERYTHING) -> Hits:
        """Rows near the mean vector of each label.

        Raises:
            QueryError: no row has one of them.
        """
        return self.search(np.stack([self.centroid(label) for label in labels]), k, where)

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

        By cosine an all-zero vector, as a query or as a row, has a score of 0 to everything.

        Args:
            queries_BD: as the table's encoder gives them.
            k: how many rows; fewer are found where the filter lets fewer through.
            where: which may be found.
            leave_out_B: for each query the position of a row that its answer is not to have; -1 for none.

        Raises:
            QueryError: vectors of another shape, not numbers, not finite, or too long for float32.
        """
        if k < 1:
            raise QueryError(f"k is {k}; expected at least 1")
        vectors_BD = as_queries(queries_BD, self.card.dimensions)
        is_zero_B = prepare(vectors_BD, self.card.metric)
        selection, parameters = self._selected(where)
        if leave_out_B is None:
            return self._hits(vectors_BD, is_zero_B, k, selection, parameters)
        hits = self._hits(vectors_BD, is_zero_B, k + 1, selection, parameters)
        out_BK = hits.positions_BK == leave_out_B[:, None]
        order_BK = np.argsort(out_BK | (hits.positions_BK < 0), axis=1, kind="stable")[:, :k]
        positions_BK = np.where(out_BK, -1, hits.positions_BK)
        take = np.take_along_axis
        return Hits(self.rows, take(positions_BK, order_BK, axis=1), take(hits.scores_BK, order_BK, axis=1))

    def search_distinct(self, vectors_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest distinct vectors of the index, each of which stands for all rows that have it.

        Args:
            vectors_BD: prepared, as `exact` gives them.
            k: how many.

        Returns:
            nodes_BK (-1 where there are fewer) and nearness_BK, nearest first.
        """
        selection, parameters = self._selected(EVERYTHING)
        return self._nearest(vectors_BD, min(k, selection.node_count), selection, parameters)

    def count(self, where: Filter) -> int:
        """How many rows a filter lets through."""
        return self._selected(where)[0].count

    def _hits(
        self, vectors_BD: np.ndarray, is_zero_B: np.ndarray, k: int, selection: Selection, parameters: Parameters
    ) -> Hits:
        k = min(k, selection.count)
        found = self._nearest(vectors_BD, min(k, selection.node_count), selection, parameters)
        positions_BK, nearness_BK = selection.rows_of(*found, k)
        if len(selection.zero_positions):
            zeros_BZ = np.tile(selection.zero_positions[:k], (len(vectors_BD), 1))
            of_zeros = zeros_BZ, np.zeros(zeros_BZ.shape, np.float32)
            positions_BK, nearness_BK = nearest_of([(positions_BK, nearness_BK), of_zeros], k)
        if is_zero_B.any():
            positions_BK = np.where(is_zero_B[:, None], selection.first_positions(k), positions_BK)
            nearness_BK = np.where(is_zero_B[:, None], np.float32(0), nearness_BK)
        return Hits(self.rows, positions_BK, scores_of(nearness_BK, self.card.metric))

    def _nearest(
        self, vectors_BD: np.ndarray, k: int, selection: Selection, parameters: Parameters
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest nodes; where lists held too few, more are looked into, and where a graph led to too few, all compared."""
        index, allowed = self._index.index, selection.allowed
        if not k:
            return np.empty((len(vectors_BD), 0), np.int64), np.empty((len(vectors_BD), 0), np.float32)
        if selection.is_filtered and selection.node_count <= EXACT_ROWS and self._vectors_at_hand:
            nodes = selection.nodes
            return exact_neighbours(vectors_BD, [(nodes, self._exact.take(nodes))], k, self.card.metric)
        nodes_BK, nearness_BK = index.search(vectors_BD, k, parameters, self._exact, allowed)
        if not np.count_nonzero(nodes_BK[:, -1] < 0):  # quicker than `any` for few
            return nodes_BK, nearness_BK
        while (nodes_BK[:, -1] < 0).any() and index.kind.lists > (parameters.nprobe or index.kind.lists):
            parameters = parameters.model_copy(update={"nprobe": min(index.kind.lists, _MORE * (parameters.nprobe or 1))})
            nodes_BK, nearness_BK = index.search(vectors_BD, k, parameters, self._exact, allowed)
        if index.kind.is_graph and self._vectors_at_hand:
            is_short_B = nodes_BK[:, -1] < 0  # vectors in tight clusters hang together in graphs of their own
            nodes_BK[is_short_B], nearness_BK[is_short_B] = exact_neighbours(
                vectors_BD[is_short_B], self._blocks(allowed), k, self.card.metric
            )
        return nodes_BK, nearness_BK

    @property
    def _vectors_at_hand(self) -> bool:
        return self._index.index.kind.is_exact or self._index.stored is not None

    def _blocks(self, allowed: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for nodes_B, vectors_BD in self._exact.blocks():
            keep_B = slice(None) if allowed is None else allowed[nodes_B]
            yield nodes_B[keep_B], vectors_BD[keep_B]

    def _selected(self, where: Filter) -> tuple[Selection, Parameters]:
        """What a filter lets through, and the parameters of a search among that: the fewer rows, the wider."""
        selected = self._selected_by.get(where)
        if selected is None:
            nodes = len(self.rows.nodes_U)
            has_dead = self._index.index.total > nodes
            selection = Selection(self.rows, where, self.card.next_node, has_dead=has_dead)
            selected = selection, self._wider(nodes / max(1, selection.node_count))
            if len(self._selected_by) >= _FILTERS_KEPT:
                self._selected_by.clear()
            self._selected_by[where] = selected
        return selected

    def _wider(self, times: float) -> Parameters:
        given = self.card.parameters
        if times == 1:
            return given
        nprobe = None if given.nprobe is None else min(self._index.index.kind.lists, int(np.ceil(given.nprobe * times)))
        ef_search = None if given.ef_search is None else min(MAX_EF_SEARCH, int(np.ceil(given.ef_search * times)))
        return Parameters(nprobe=nprobe, ef_search=ef_search, rerank=given.rerank)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What a person wants to know of the index: version, table, recipe, rows, metric, factory, recall."""
        recall = {"recall_at_10": self.card.quality.recall_at_10, "measured_version": self.card.measured_version}
        return {name: getattr(self.card, name) for name in _ABOUT} | recall
