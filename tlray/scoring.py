"""How good embeddings are, as numbers: arrays in, floats out.

Shape legend: N, M vectors, D embedding length, K outputs, E pairs of vectors.
"""

import numpy as np

from tlray.predictor import Task

BLOCK_ROWS = 1024
"""Queries compared at once: 1,024 x 1,000,000 float32 similarities take 4 GB, x 100,000 a tenth of it."""


def probabilities_of(scores_NK: np.ndarray, task: Task) -> np.ndarray:
    """Softmax (single) or the logistic function (multi) of a head's scores; the scores themselves of a regression. float32."""
    if task == "regression":
        return scores_NK.astype(np.float32)
    if task == "multi":
        # 0.5 (1 + tanh(x / 2)) is the logistic function without an overflow.
        return (0.5 * (1 + np.tanh(0.5 * scores_NK))).astype(np.float32)
    powers_NK = np.exp(scores_NK - scores_NK.max(axis=1, keepdims=True))
    probabilities_NK: np.ndarray = (powers_NK / powers_NK.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities_NK


def unit_vectors(features_ND: np.ndarray) -> np.ndarray:
    """Each row divided by its L2 norm; a zero row stays zero. float32."""
    norms_N1 = np.linalg.norm(features_ND, axis=1, keepdims=True)
    unit_ND: np.ndarray = np.divide(features_ND, norms_N1, out=np.zeros_like(features_ND), where=norms_N1 > 0)
    return unit_ND


def nearest_neighbours(queries_MD: np.ndarray, features_ND: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the exact nearest neighbours of queries by cosine.

    Args:
        queries_MD: float32.
        features_ND: float32, N at least k.
        k: how many.

    Returns:
        indexes_MK (int64) and cosines_MK (float32), most similar first.
    """
    queries_MD, features_ND = unit_vectors(queries_MD), unit_vectors(features_ND)
    indexes_MK = np.empty((len(queries_MD), k), np.int64)
    cosines_MK = np.empty((len(queries_MD), k), np.float32)
    for start in range(0, len(queries_MD), BLOCK_ROWS):
        cosines_BN = queries_MD[start : start + BLOCK_ROWS] @ features_ND.T
        nearest_BK = np.argpartition(-cosines_BN, k - 1, axis=1)[:, :k]
        of_nearest_BK = np.take_along_axis(cosines_BN, nearest_BK, axis=1)
        order_BK = np.argsort(-of_nearest_BK, axis=1, kind="stable")
        indexes_MK[start : start + BLOCK_ROWS] = np.take_along_axis(nearest_BK, order_BK, axis=1)
        cosines_MK[start : start + BLOCK_ROWS] = np.take_along_axis(of_nearest_BK, order_BK, axis=1)
    return indexes_MK, cosines_MK


def knn_accuracy(
    features_ND: np.ndarray, labels_N: np.ndarray, queries_MD: np.ndarray, query_labels_M: np.ndarray, *, k: int = 20
) -> float:
    """Accuracy of a k-nearest-neighbour vote by cosine, each neighbour one vote, ties to the first label in order.

    Args:
        features_ND: of the labelled images.
        labels_N: their labels.
        queries_MD: of the held-out images.
        query_labels_M: their labels.
        k: voters; 20 as in the weighted probe of Wu et al. 2018 (arXiv 1805.01978), which DINO made usual.

    Returns:
        The fraction of queries whose label wins.
    """
    classes, class_of_N = np.unique(labels_N, return_inverse=True)
    indexes_MK, _ = nearest_neighbours(queries_MD, features_ND, k)
    votes_MC = np.zeros((len(queries_MD), len(classes)), np.int64)
    rows = np.repeat(np.arange(len(queries_MD)), k)
    np.add.at(votes_MC, (rows, class_of_N[indexes_MK].reshape(-1)), 1)
    return float(np.mean(classes[votes_MC.argmax(axis=1)] == query_labels_M))


def connected_components(count: int, first_E: np.ndarray, second_E: np.ndarray) -> np.ndarray:
    """The connected components of a graph: for each of N rows the least position in its group.

    Args:
        count: N.
        first_E: one end of each pair.
        second_E: its other end.

    Least labels spread along the pairs, with pointer jumping, until nothing changes (Shiloach and Vishkin 1982).
    """
    group_N = np.arange(count)
    while True:
        before_N = group_N.copy()
        least_E = np.minimum(group_N[first_E], group_N[second_E])
        for ends_E in (first_E, second_E):
            np.minimum.at(group_N, group_N[ends_E], least_E)
            np.minimum.at(group_N, ends_E, least_E)
        group_N = group_N[group_N]
        if np.array_equal(before_N, group_N):
            return group_N


def near_duplicate_groups(features_ND: np.ndarray, cosine: float) -> np.ndarray:
    """Rows that are nearly the same, directly or through others, by comparing all pairs.

    Args:
        features_ND: float32.
        cosine: rows at least this near belong together.

    Returns:
        For each row the least position in its group; a row alone is its own group.
    """
    unit_ND = unit_vectors(features_ND)
    first, second = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start in range(0, len(unit_ND), BLOCK_ROWS):
        near_BN = unit_ND[start : start + BLOCK_ROWS] @ unit_ND[start:].T >= cosine
        at_B, other_N = np.nonzero(near_BN)
        later = other_N > at_B
        first.append(start + at_B[later])
        second.append(start + other_N[later])
    return connected_components(len(unit_ND), np.concatenate(first), np.concatenate(second))
