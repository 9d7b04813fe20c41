"""What "near" means, and exact neighbours: vectors compared one by one, without an index.

*Nearness* is larger for nearer vectors: the cosine, the inner product, or minus the squared L2 distance. A *prepared* vector
is contiguous float32, and of unit length where the metric is cosine. An all-zero vector has no direction: its cosine to every
vector, to another such one and to itself is taken to be 0, as in scikit-learn's `cosine_similarity`.

Shape legend: B queries or vectors, C and J candidates, K neighbours, M ids, N vectors, D dimensions. Queries and vectors are
prepared unless it is said otherwise.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

import faiss
import numpy as np

from tlray.errors import QueryError

Metric = Literal["cosine", "ip", "l2"]

_GATHERED_FLOATS = 2**25
"""Floats of candidates in memory at once: 128 MiB."""

_SPARE = 16
"""Neighbours beyond k that are compared again, as the last of k may be among them."""

_ROUNDING = 4 * 2.0**-24
"""The rounding error of a sum of D products, over the square root of D and the lengths of both vectors: rounding errors of
float32 add up like random ones (Higham and Mary 2019, "A new approach to probabilistic rounding error analysis", theorem 2.4;
here 4 times the unit roundoff, which all but one sum in thousands keeps)."""

_LEAST_SQUARE = 1e-30
"""Squared lengths under this have lost bits to float32's least numbers (1.2e-38 at full precision, for each summand)."""


class ExactVectors(Protocol):
    """The exact vectors behind an index, by the ids that FAISS knows them by."""

    def take(self, ids_M: np.ndarray) -> np.ndarray:
        """The prepared vectors_MD of M live ids."""
        ...

    def nearness(self, queries_BD: np.ndarray, ids_BC: np.ndarray) -> np.ndarray:
        """Exact nearness_BC of queries to live vectors, minus infinity where an id is -1."""
        ...


def as_queries(given_BD: np.ndarray, dimensions: int) -> np.ndarray:
    """Queries as contiguous float32 of their own.

    Args:
        given_BD: numbers of any type.
        dimensions: D.

    Raises:
        QueryError: vectors of another shape, not numbers, not finite, or too long for float32.
    """
    expected = f"expected (B, {dimensions}) numbers"
    try:
        given_BD = np.asarray(given_BD)
        if given_BD.dtype.kind not in "fiub":
            raise QueryError(f"queries are of the type {given_BD.dtype}; {expected}")
        with np.errstate(over="ignore"):  # what becomes infinite is refused below
            queries_BD = np.array(given_BD, np.float32, order="C")
    except ValueError as error:
        raise QueryError(f"queries are no array: {error}; {expected}") from error
    if queries_BD.ndim != 2 or queries_BD.shape[1] != dimensions:
        raise QueryError(f"queries have the shape {queries_BD.shape}; {expected}")
    # Quicker than to look at each value, and it finds vectors, too, that are too long to be compared.
    if not math.isfinite(np.vdot(queries_BD, queries_BD)):
        is_bad_B = ~np.isfinite(np.einsum("ij,ij->i", queries_BD, queries_BD))
        which = f"query {is_bad_B.argmax()} (from 0)" if is_bad_B.any() else "a query"
        raise QueryError(f"{which} has values that are not finite, or whose squares are not; expected finite floats")
    return queries_BD


def prepared(features_BD: np.ndarray, metric: Metric) -> np.ndarray:
    """Vectors in the form in which they are compared; a copy unless they have it already.

    Args:
        features_BD: of any floating type, as an encoder or a table gives them.
        metric: what "near" means.

    Returns:
        vectors_BD, contiguous float32, of unit length for cosine; an all-zero vector stays as it is.
    """
    if metric != "cosine":
        return np.ascontiguousarray(features_BD, np.float32)
    unit_BD = np.array(features_BD, np.float32, order="C")
    prepare(unit_BD, metric)
    return unit_BD


def prepare(vectors_BD: np.ndarray, metric: Metric) -> np.ndarray:
    """Like `prepared`, in place, for contiguous float32 vectors.

    Returns:
        is_zero_B: which vectors have no direction, so no cosine. Always False for other metrics, which compare them like any.
    """
    if metric != "cosine":
        return np.zeros(len(vectors_BD), bool)
    squares_B = np.empty(len(vectors_BD), np.float32)
    faiss.fvec_norms_L2sqr(faiss.swig_ptr(squares_B), faiss.swig_ptr(vectors_BD), vectors_BD.shape[1], len(vectors_BD))
    is_extreme_B = ~((squares_B >= _LEAST_SQUARE) & (squares_B < np.inf))
    if not is_extreme_B.any():
        faiss.normalize_L2(vectors_BD)
        return is_extreme_B
    extreme_BD = vectors_BD[is_extreme_B].astype(np.float64)
    lengths_B1 = np.linalg.norm(extreme_BD, axis=1, keepdims=True)
    faiss.normalize_L2(vectors_BD)
    vectors_BD[is_extreme_B] = extreme_BD / np.where(lengths_B1 == 0, 1, lengths_B1)
    is_extreme_B[is_extreme_B] = lengths_B1[:, 0] == 0
    return is_extreme_B


def scores_of(nearness_BK: np.ndarray, metric: Metric) -> np.ndarray:
    """What a user is shown for a nearness: the cosine, the inner product, or the L2 distance."""
    return np.sqrt(np.maximum(-nearness_BK, 0)) if metric == "l2" else nearness_BK


def nearness_from(distances_BK: np.ndarray, metric: Metric) -> np.ndarray:
    """Nearness from FAISS's own numbers: inner products, or squared L2 distances (for cosine those of unit vectors)."""
    if metric == "ip":
        return distances_BK
    return 1 - distances_BK / 2 if metric == "cosine" else -distances_BK


def knn(queries_BD: np.ndarray, vectors_ND: np.ndarray, k: int, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of some vectors by FAISS's brute force, to the precision of its matrix products (`in_full_precision`).

    Args:
        queries_BD: prepared.
        vectors_ND: prepared.
        k: how many neighbours, at most N.
        metric: what "near" means.

    Returns:
        Positions at_BK and nearness_BK, nearest first.
    """
    kind = faiss.METRIC_INNER_PRODUCT if metric == "ip" else faiss.METRIC_L2
    distances_BK, at_BK = faiss.knn(queries_BD, np.ascontiguousarray(vectors_ND), k, metric=kind)
    return at_BK, nearness_from(distances_BK, metric)


def nearness_at(queries_BD: np.ndarray, vectors_ND: np.ndarray, at_BC: np.ndarray, metric: Metric) -> np.ndarray:
    """Exact nearness_BC of each query to vectors of its own, given by position; `vectors_ND` is not copied.

    By the differences of the vectors, except for inner products: of equal vectors the cosine is 1, not nearly so. Where a
    position is -1, FAISS itself gives what makes the nearness minus infinity.
    """
    queries_BD, at_BC = np.ascontiguousarray(queries_BD, np.float32), np.ascontiguousarray(at_BC, np.int64)
    nearness_BC = np.empty(at_BC.shape, np.float32)
    given = [faiss.swig_ptr(each) for each in (nearness_BC, queries_BD, vectors_ND, at_BC)]
    by_position = faiss.fvec_inner_products_by_idx if metric == "ip" else faiss.fvec_L2sqr_by_idx
    by_position(*given, vectors_ND.shape[1], *at_BC.shape)
    return nearness_from(nearness_BC, metric)


def in_full_precision(
    search: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]],
    nearness: Callable[[np.ndarray, np.ndarray], np.ndarray],
    queries_BD: np.ndarray,
    k: int,
    metric: Metric,
    longest: Callable[[], float],
) -> tuple[np.ndarray, np.ndarray]:
    """An exhaustive search whose answers are exact however many queries there are.

    From some number of queries on FAISS compares by matrix products, |q|^2 + |v|^2 - 2 q v, where digits cancel. So a few more
    than k are asked for and compared again. By cosine and inner product no vector is left out that is nearer than the last
    given by more than `_ROUNDING` allows. L2 distances can be small against the vectors' lengths: queries for which the few
    more do not prove that none is left out are searched for again, a few at a time, which FAISS does by differences.

    Args:
        search: from queries and k to ids and FAISS's nearness, nearest first; -1 where there are fewer.
        nearness: from queries and ids to the exact nearness.
        queries_BD: prepared.
        k: how many neighbours.
        metric: what "near" means.
        longest: the length of the longest vector; asked for L2 alone.

    Returns:
        ids_BK and nearness_BK, nearest first.
    """
    few = faiss.cvar.distance_compute_blas_threshold - 1
    if len(queries_BD) <= few:
        return search(queries_BD, k)
    ids_BC, given_BC = search(queries_BD, k + _SPARE)
    ids_BK, nearness_BK = nearest_of([(ids_BC, nearness(queries_BD, ids_BC))], k)
    if metric == "l2" and ids_BC.shape[1] == k + _SPARE:
        error_B = _ROUNDING * np.sqrt(queries_BD.shape[1]) * (np.linalg.norm(queries_BD, axis=1) + longest()) ** 2
        is_unsure_B = (ids_BC[:, -1] >= 0) & (nearness_BK[:, -1] < given_BC[:, -1] + error_B)
        unsure = np.flatnonzero(is_unsure_B)
        for start in range(0, len(unsure), few):
            at = unsure[start : start + few]
            ids_BK[at], nearness_BK[at] = search(queries_BD[at], k)
    return ids_BK, nearness_BK


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
        best = nearest_of([best, _nearest_in(queries_BD, ids_N, np.ascontiguousarray(vectors_ND), k, metric)], k)
    return best


def _nearest_in(
    queries_BD: np.ndarray, ids_N: np.ndarray, vectors_ND: np.ndarray, k: int, metric: Metric
) -> tuple[np.ndarray, np.ndarray]:
    def search(some_BD: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        return knn(some_BD, vectors_ND, min(wanted, len(vectors_ND)), metric)

    at_BJ, nearness_BJ = in_full_precision(
        search,
        lambda some_BD, at: nearness_at(some_BD, vectors_ND, at, metric),
        queries_BD,
        min(k, len(vectors_ND)),
        metric,
        lambda: float(np.linalg.norm(vectors_ND, axis=1).max()),
    )
    return ids_N[at_BJ], nearness_BJ


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
