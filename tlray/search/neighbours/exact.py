"""Exact neighbours, by comparing all there is.

Shape legend: B queries, C and J candidates, K neighbours, M ids, N vectors, D dimensions.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tlray.search.neighbours.brute import knn, nearness_at
from tlray.search.neighbours.factory import Metric

_GATHERED_FLOATS = 2**25
"""Candidates' floats in memory at once: 128 MiB."""


def gathered_nearness(
    take: Callable[[np.ndarray], np.ndarray], queries_BD: np.ndarray, ids_BC: np.ndarray, metric: Metric
) -> np.ndarray:
    """Exact nearness_BC of each query to candidates of its own, minus infinity where one is -1.

    Args:
        take: from M ids to their prepared vectors.
        queries_BD: likewise.
        ids_BC: the candidates.
        metric: what "near" means.
    """
    nearness_BC = np.empty(ids_BC.shape, np.float32)
    block = max(1, _GATHERED_FLOATS // max(1, ids_BC.shape[1] * queries_BD.shape[1]))
    for start in range(0, len(queries_BD), block):
        rows = slice(start, start + block)
        there_M, at_BC = np.unique(ids_BC[rows], return_inverse=True)
        missing = int(len(there_M) > 0 and there_M[0] < 0)
        vectors_MD = np.ascontiguousarray(take(there_M[missing:]), np.float32)
        if len(vectors_MD):
            nearness_BC[rows] = nearness_at(queries_BD[rows], vectors_MD, at_BC.reshape(ids_BC[rows].shape) - missing, metric)
        else:
            nearness_BC[rows] = -np.inf
    return nearness_BC


def exact_neighbours(
    queries_BD: np.ndarray, blocks: Iterable[tuple[np.ndarray, np.ndarray]], k: int, metric: Metric
) -> tuple[np.ndarray, np.ndarray]:
    """FAISS's brute force, block by block.

    Args:
        queries_BD: `Engine.prepared`.
        blocks: ids and their vectors, likewise.
        k: how many neighbours.
        metric: what "near" means.

    Returns:
        ids_BK (-1 where there are fewer than k) and nearness_BK, nearest first.
    """
    best = np.full((len(queries_BD), k), -1, np.int64), np.full((len(queries_BD), k), -np.inf, np.float32)
    for block_ids, vectors_ND in blocks:
        if not len(vectors_ND):
            continue
        at_BJ, nearness_BJ = knn(queries_BD, vectors_ND, min(k, len(vectors_ND)), metric)
        best = nearest_of([best, (block_ids[at_BJ], nearness_BJ)], k)
    return best


def nearest_of(found: Sequence[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of several answers to the same queries, each ids_BJ and nearness_BJ."""
    ids_BJ, nearness_BJ = found[0]
    if len(found) > 1:
        ids_BJ = np.concatenate([ids for ids, _ in found], axis=1)
        nearness_BJ = np.concatenate([nearness for _, nearness in found], axis=1)
    at_BK = (-nearness_BJ).argsort(axis=1, kind="stable")[:, :k]
    if len(at_BK) > 1:
        at_BK = at_BK + (np.arange(len(at_BK)) * nearness_BJ.shape[1])[:, None]
    # By place in the whole array: indexing by row and column takes longer than a search of few codes.
    return ids_BJ.take(at_BK), nearness_BJ.take(at_BK)
