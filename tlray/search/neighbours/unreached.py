"""Rows that a graph's links do not lead to: compared with every query, as if the graph had found them.

A node of an HNSW that has too many links keeps some in different directions (Malkov and Yashunin 2016, algorithm 4), and so may
drop the only one that leads to a row.
It is seen as one lost row among some thousands that are added.

Shape legend: U rows, B queries, K neighbours, D dimensions.
"""

from typing import Any

import numpy as np

from tlray.search.neighbours.exact import Metric


class Unreached:
    """Rows that a graph does not reach, which are searched beside it.

    Args:
        ids_U: of the rows.
        flat: a FAISS index that compares all of them, by position, as the graph's own distances are.
        metric: of the index.
    """

    def __init__(self, ids_U: np.ndarray, flat: Any, metric: Metric) -> None:
        self.ids_U = ids_U
        self._flat = flat
        limit = np.finfo(np.float32).max  # as FAISS marks a neighbour that is not there
        self._none = np.float32(-limit if metric == "ip" else limit)

    def join(
        self, queries_BD: np.ndarray, ids_BK: np.ndarray, distances_BK: np.ndarray, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """What a graph found and the nearest of these rows, K of both.

        Args:
            queries_BD: as FAISS gets them.
            ids_BK: that the graph found, -1 where it did not.
            distances_BK: FAISS's, nearest first.
            allowed: for each id whether it may be found; None means all.
        """
        more_BU, at_BU = self._flat.search(queries_BD, len(self.ids_U))
        both_ids = np.concatenate([ids_BK, self.ids_U[at_BU]], axis=1)
        # A search that does find one of them must not give it twice.
        distances_BK = np.where(np.isin(ids_BK, self.ids_U), self._none, distances_BK)
        if allowed is not None:
            more_BU = np.where(allowed[self.ids_U[at_BU]], more_BU, self._none)
        both = np.concatenate([distances_BK, more_BU], axis=1)
        order_BK = np.argsort(both if self._none > 0 else -both, axis=1, kind="stable")[:, : ids_BK.shape[1]]
        distances_BK = np.take_along_axis(both, order_BK, axis=1)
        return np.where(distances_BK == self._none, -1, np.take_along_axis(both_ids, order_BK, axis=1)), distances_BK
