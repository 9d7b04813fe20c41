"""Exact neighbours: vectors compared one by one, without an index.

Shape legend: B queries, C and J candidates, K neighbours, M ids, N vectors, D dimensions. Queries and vectors are prepared
(`tlray.search.neighbours.metric`).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import faiss
import numpy as np

from tlray.search.neighbours.metric import Metric

_GATHERED_FLOATS = 2**25
"""Floats of candidates in memory at once: 128 MiB."""


class ExactVectors(Protocol):
    """The exact vectors behind an index, by the ids that FAISS knows them by."""

    def take(self, ids_M: np.ndarray) -> np.ndarray:
        """The prepared vectors_MD of M live ids."""
        ...

    def nearness(self, queries_BD: np.ndarray, ids_BC: np.ndarray) -> np.ndarray:
        """Exact nearness_BC of queries to live vectors, minus infinity where an id is -1."""
        ...


def knn(queries_BD: np.ndarray, vectors_ND: np.ndarray, k: int, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of some vectors by FAISS's brute force.

    Args:
        queries_BD: float32.
        vectors_ND: float32.
        k: how many neighbours, at most N.
        metric: what "near" means.

    Returns:
        Positions at_BK and nearness_BK, nearest first.
    """
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    scores_BK, at_BK = faiss.knn(queries_BD, np.ascontiguousarray(vectors_ND), k, metric=kind)
    return at_BK, -scores_BK if metric == "l2" else scores_BK


def nearness_at(queries_BD: np.ndarray, vectors_ND: np.ndarray, at_BC: np.ndarray, metric: Metric) -> np.ndarray:
    """Exact nearness_BC of each query to vectors of its own, given by position; `vectors_ND` is not copied.

    FAISS itself gives minus infinity where a position is -1.
    """
    queries_BD, at_BC = np.ascontiguousarray(queries_BD, np.float32), np.ascontiguousarray(at_BC, np.int64)
    nearness_BC = np.empty(at_BC.shape, np.float32)
    given = [faiss.swig_ptr(each) for each in (nearness_BC, queries_BD, vectors_ND, at_BC)]
    by_position = faiss.fvec_L2sqr_by_idx if metric == "l2" else faiss.fvec_inner_products_by_idx
    by_position(*given, vectors_ND.shape[1], *at_BC.shape)
    if metric == "l2":
        np.negative(nearness_BC, out=nearness_BC)
    return nearness_BC


def gathered_nearness(
    take: Callable[[np.ndarray], np.ndarray], queries_BD: np.ndarray, ids_BC: np.ndarray, metric: Metric
) -> np.ndarray:
    """Exact nearness_BC of each query to candidates of its own, whose vectors are fetched first.

    Args:
        take: gives the vectors_MD of M ids.
        queries_BD: prepared.
        ids_BC: the candidates; -1 gives minus infinity.
        metric: what "near" means.
    """
    nearness_BC = np.empty(ids_BC.shape, np.float32)
    block = max(1, _GATHERED_FLOATS // max(1, ids_BC.shape[1] * queries_BD.shape[1]))
    for start in range(0, len(queries_BD), block):
        part = slice(start, start + block)
        there_M, at_BC = np.unique(ids_BC[part], return_inverse=True)
        missing = int(len(there_M) > 0 and there_M[0] < 0)
        vectors_MD = np.ascontiguousarray(take(there_M[missing:]), np.float32)
        if len(vectors_MD):
            nearness_BC[part] = nearness_at(queries_BD[part], vectors_MD, at_BC.reshape(ids_BC[part].shape) - missing, metric)
        else:
            nearness_BC[part] = -np.inf
    return nearness_BC


def exact_neighbours(
    queries_BD: np.ndarray, blocks: Iterable[tuple[np.ndarray, np.ndarray]], k: int, metric: Metric
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of all vectors in some blocks.

    Args:
        queries_BD: prepared.
        blocks: ids and their prepared vectors.
        k: how many neighbours.
        metric: what "near" means.

    Returns:
        ids_BK (-1 where there are fewer than k) and nearness_BK, nearest first.
    """
    best = np.full((len(queries_BD), k), -1, np.int64), np.full((len(queries_BD), k), -np.inf, np.float32)
    for ids_N, vectors_ND in blocks:
        if not len(vectors_ND):
            continue
        at_BJ, nearness_BJ = knn(queries_BD, vectors_ND, min(k, len(vectors_ND)), metric)
        best = nearest_of([best, (ids_N[at_BJ], nearness_BJ)], k)
    return best


def nearest_of(found: Sequence[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of several answers to the same queries.

    Args:
        found: ids_BJ and nearness_BJ of each answer.
        k: how many to keep.

    Returns:
        ids_BK and nearness_BK, nearest first; of equal ones the first given.
    """
    ids_BJ, nearness_BJ = found[0]
    if len(found) > 1:
        ids_BJ = np.concatenate([ids for ids, _ in found], axis=1)
        nearness_BJ = np.concatenate([nearness for _, nearness in found], axis=1)
    at_BK = (-nearness_BJ).argsort(axis=1, kind="stable")[:, :k]
    if len(at_BK) > 1:
        at_BK = at_BK + (np.arange(len(at_BK)) * nearness_BJ.shape[1])[:, None]
    # By place in the whole array: indexing by row and column takes longer than a search of few codes.
    return ids_BJ.take(at_BK), nearness_BJ.take(at_BK)
