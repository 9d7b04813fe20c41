"""From queries to neighbours: FAISS's candidates, compared again exactly where the index keeps only codes.

Shape legend: B queries, C candidates, K neighbours, D dimensions.
"""

from typing import Protocol

import numpy as np

from tlray.search.neighbours.exact import nearest_of
from tlray.search.neighbours.faiss_index import Engine
from tlray.search.neighbours.parameters import Parameters


class Vectors(Protocol):
    """The exact vectors behind an index."""

    def take(self, ids_M: np.ndarray) -> np.ndarray:
        """From M ids of live rows to their vectors_MD, as `Engine.prepared` gives them."""
        ...

    def nearness(self, queries_BD: np.ndarray, ids_BC: np.ndarray) -> np.ndarray:
        """Exact nearness_BC of prepared queries to live rows, minus infinity where an id is -1."""
        ...


def find(
    engine: Engine, vectors: Vectors, queries_BD: np.ndarray, k: int, parameters: Parameters, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Search, and re-rank where the parameters say so.

    Args:
        engine: the index.
        vectors: the exact ones; only asked where `parameters.rerank` is over 1.
        queries_BD: as `Engine.prepared` gives them.
        k: how many neighbours.
        parameters: of the search.
        allowed: for each id whether it may be found; None means all.

    Returns:
        ids_BK (-1 where there are fewer) and nearness_BK, nearest first.
    """
    if parameters.rerank == 1:
        return engine.search(queries_BD, k, parameters, allowed)
    candidates_BC, _ = engine.candidates(queries_BD, k * parameters.rerank, parameters, allowed)
    return rerank(vectors, queries_BD, candidates_BC, k)


def rerank(vectors: Vectors, queries_BD: np.ndarray, candidates_BC: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of each query's candidates by their exact vectors; as `find` returns them."""
    return nearest_of([(candidates_BC, vectors.nearness(queries_BD, candidates_BC))], k)
