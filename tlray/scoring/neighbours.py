"""Nearest neighbours by cosine, and how well they tell labels.

Shape legend: N, M vectors, D embedding length.
"""

import numpy as np

BLOCK_ROWS = 1024
"""Queries compared at once: 1,024 x 1,000,000 float32 similarities take 4 GB, x 100,000 a tenth of it."""


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


def nearest_votes(features_ND: np.ndarray, labels_N: np.ndarray, queries_MD: np.ndarray, *, k: int = 20) -> np.ndarray:
    """The label that most of a query's k nearest neighbours by cosine have, ties to the first label in order.

    Args:
        features_ND: of the labelled images.
        labels_N: their labels.
        queries_MD: of other images.
        k: voters, each with one vote; 20 as in the weighted probe of Wu et al. 2018 (arXiv 1805.01978), which DINO made usual.

    Returns:
        labels_M.
    """
    classes, class_of_N = np.unique(labels_N, return_inverse=True)
    indexes_MK, _ = nearest_neighbours(queries_MD, features_ND, k)
    votes_MC = np.zeros((len(queries_MD), len(classes)), np.int64)
    rows = np.repeat(np.arange(len(queries_MD)), k)
    np.add.at(votes_MC, (rows, class_of_N[indexes_MK].reshape(-1)), 1)
    labels_M: np.ndarray = classes[votes_MC.argmax(axis=1)]
    return labels_M


def knn_accuracy(
    features_ND: np.ndarray, labels_N: np.ndarray, queries_MD: np.ndarray, query_labels_M: np.ndarray, *, k: int = 20
) -> float:
    """Accuracy of a k-nearest-neighbour vote by cosine; see `nearest_votes`.

    Args:
        features_ND: of the labelled images.
        labels_N: their labels.
        queries_MD: of the held-out images.
        query_labels_M: their labels.
        k: voters.

    Returns:
        The fraction of queries whose label wins.
    """
    return float(np.mean(nearest_votes(features_ND, labels_N, queries_MD, k=k) == query_labels_M))
