"""Groups of vectors that are nearly the same.

Shape legend: N vectors, D embedding length, E pairs of vectors.
"""

import numpy as np

from tlray.scoring.neighbours import BLOCK_ROWS, unit_vectors


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
