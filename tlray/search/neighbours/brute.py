"""FAISS's functions that need no index: brute force, and how many threads it takes.

Shape legend: N vectors, B queries, C candidates, K neighbours, D dimensions.
"""

import faiss
import numpy as np

from tlray.search.neighbours.factory import Metric


def knn(queries_BD: np.ndarray, vectors_ND: np.ndarray, k: int, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """FAISS's brute force: positions_BK among prepared vectors and nearness_BK, nearest first; k is at most N."""
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    scores_BK, at_BK = faiss.knn(queries_BD, np.ascontiguousarray(vectors_ND), k, metric=kind)
    return at_BK, -scores_BK if metric == "l2" else scores_BK


def nearness_at(queries_BD: np.ndarray, vectors_ND: np.ndarray, at_BC: np.ndarray, metric: Metric) -> np.ndarray:
    """Exact nearness_BC of each query to vectors of its own, by position; `vectors_ND` is not copied.

    FAISS itself gives minus infinity where a position is -1.
    """
    queries_BD, at_BC = np.ascontiguousarray(queries_BD, np.float32), np.ascontiguousarray(at_BC, np.int64)
    nearness_BC = np.empty(at_BC.shape, np.float32)
    given = [faiss.swig_ptr(each) for each in (nearness_BC, queries_BD, vectors_ND, at_BC)]
    compare = faiss.fvec_L2sqr_by_idx if metric == "l2" else faiss.fvec_inner_products_by_idx
    compare(*given, vectors_ND.shape[1], *at_BC.shape)
    if metric == "l2":
        np.negative(nearness_BC, out=nearness_BC)
    return nearness_BC


def threads() -> int:
    """Threads of one FAISS call."""
    return int(faiss.omp_get_max_threads())


def set_threads(count: int) -> None:
    """Threads of one FAISS call, in the whole process."""
    faiss.omp_set_num_threads(count)
