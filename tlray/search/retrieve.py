"""From queries to neighbours: FAISS's candidates, compared again exactly where the index keeps only codes.

Shape legend: B queries, C candidates, K neighbours, D dimensions.
"""

from collections.abc import Callable

import numpy as np

from tlray.search.card import Parameters
from tlray.search.engine import Engine, nearness

Take = Callable[[np.ndarray], np.ndarray]
"""From M ids of live rows to their vectors of length D, as `Engine.prepared` gives them."""

_RERANK_FLOATS = 2**25
"""Candidates' floats in memory at once: 128 MiB."""


def find(
    engine: Engine, take: Take, queries_BD: np.ndarray, k: int, parameters: Parameters, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Search, and re-rank where the parameters say so.

    Args:
        engine: the index.
        take: the exact vectors; only asked where `parameters.rerank` is over 1.
        queries_BD: as `Engine.prepared` gives them.
        k: how many neighbours.
        parameters: of the search.
        allowed: for each id whether it may be found; None means all.

    Returns:
        ids_BK (-1 where there are fewer) and nearness_BK, nearest first.
    """
    candidates_BC, nearness_BC = engine.search(queries_BD, k * parameters.rerank, parameters, allowed)
    if parameters.rerank == 1:
        return candidates_BC, nearness_BC
    return rerank(engine, take, queries_BD, candidates_BC, k)


def rerank(
    engine: Engine, take: Take, queries_BD: np.ndarray, candidates_BC: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of each query's candidates by their exact vectors; as `find` returns them."""
    ids_BK = np.empty((len(queries_BD), min(k, candidates_BC.shape[1])), np.int64)
    nearness_BK = np.empty(ids_BK.shape, np.float32)
    block = max(1, _RERANK_FLOATS // max(1, candidates_BC.shape[1] * queries_BD.shape[1]))
    for start in range(0, len(queries_BD), block):
        rows = slice(start, start + block)
        exact_BC = exact_nearness(engine, take, queries_BD[rows], candidates_BC[rows])
        order_BK = np.argsort(-exact_BC, axis=1, kind="stable")[:, :k]
        ids_BK[rows] = np.take_along_axis(candidates_BC[rows], order_BK, axis=1)
        nearness_BK[rows] = np.take_along_axis(exact_BC, order_BK, axis=1)
    return ids_BK, nearness_BK


def exact_nearness(engine: Engine, take: Take, queries_BD: np.ndarray, candidates_BC: np.ndarray) -> np.ndarray:
    """Nearness of queries to candidates by exact vectors; minus infinity where a candidate is -1."""
    there_BC = candidates_BC >= 0
    vectors_BCD = np.zeros((*candidates_BC.shape, queries_BD.shape[1]), np.float32)
    vectors_BCD[there_BC] = take(candidates_BC[there_BC])
    return np.where(there_BC, nearness(queries_BD, vectors_BCD, engine.metric), -np.inf).astype(np.float32)
