"""Search an index: by vectors, images, texts, its own rows or labels, with filters.

Shape legend: B queries, K neighbours, D dimensions.
"""

import tempfile
from collections.abc import Iterator, Sequence

import numpy as np

from tlray.errors import QueryError
from tlray.search.neighbours.exact import as_queries, exact_neighbours, nearest_of, prepare, scores_of
from tlray.search.neighbours.faiss_index import MAX_EF_SEARCH
from tlray.search.neighbours.parameters import Parameters
from tlray.search.query.hits import Hits
from tlray.search.query.opened_index import OpenedIndex, check_texts
from tlray.search.rows.selection import Filter, Selection
from tlray.search.versions.load import LoadedIndex

EXACT_ROWS = 10_000
"""Up to so many rows that a filter leaves, all of them are compared: graphs and lists find few neighbours among few rows."""
CENTROID_ROWS = 4096
"""Most rows that a label's mean is taken over, evenly spread: its error falls with the root of their number."""

_FILTERS_KEPT = 32
_MORE = 4
"""Times more lists, where those looked into have fewer than k rows."""

EVERYTHING = Filter()


class Searcher(OpenedIndex):
    """One version of an index, ready for searches from many threads; `Searcher.open` opens one."""

    def __init__(self, index: LoadedIndex, scratch: "tempfile.TemporaryDirectory[str] | None" = None) -> None:
        super().__init__(index, scratch)
        self._selected_by: dict[Filter, tuple[Selection, Parameters]] = {}

    def search_images(self, images: Sequence[bytes], k: int = 10, where: Filter = EVERYTHING) -> Hits:
        """Rows near images, each given as a file's bytes.

        Raises:
            ImageError: one of them cannot be used.
        """
        return self.search(self.encoder().embed(images), k, where)

    def search_texts(self, texts: Sequence[str], k: int = 10, where: Filter = EVERYTHING) -> Hits:
        """Rows near texts, by the text tower of the table's network.

        Raises:
            ConfigError: the network has none.
            QueryError: a text is empty.
        """
        check_texts(texts)
        return self.search(self.text_encoder().encode(texts), k, where)

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
        """Find the rows whose vectors are nearest to the queries'.

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
            return exact_neighbours(vectors_BD, [(nodes, self.exact.take(nodes))], k, self.card.metric)
        nodes_BK, nearness_BK = index.search(vectors_BD, k, parameters, self.exact, allowed)
        if not np.count_nonzero(nodes_BK[:, -1] < 0):  # quicker than `any` for few
            return nodes_BK, nearness_BK
        while (nodes_BK[:, -1] < 0).any() and index.kind.lists > (parameters.nprobe or index.kind.lists):
            parameters = parameters.model_copy(update={"nprobe": min(index.kind.lists, _MORE * (parameters.nprobe or 1))})
            nodes_BK, nearness_BK = index.search(vectors_BD, k, parameters, self.exact, allowed)
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
        for nodes_B, vectors_BD in self.exact.blocks():
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
