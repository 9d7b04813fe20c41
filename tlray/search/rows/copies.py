"""Rows that share one vector, bit by bit: copies of a file, placeholders. An index holds each distinct vector once.

Thousands of identical vectors in one graph take all of each other's links, and rows beyond them are not found any more. So
what FAISS holds are *nodes*, one for each distinct vector; an answer names all rows of a node.

Equal keys tell rows that may be copies without a comparison of all with all; equal digests of those few tell that they are.

Shape legend: N rows, M of them, U nodes, D dimensions.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

NO_NODE = -1
"""Node of a row that FAISS does not hold: an all-zero vector, where the metric is cosine."""

_DIGEST_BYTES = 16
"""Length of a BLAKE2b digest: among 1e9 digests two are equal by chance with a probability of 1e-21."""

_BLOCK_ROWS = 256
"""Rows whose keys are computed at once, so that what is in between stays in the processor's cache."""


@dataclass(frozen=True)
class Nodes:
    """Which rows share a vector, and so a node of the index.

    Attributes:
        of_row_N: node of each row, numbered by the first row of each; NO_NODE for rows that are in none.
        first_row_U: position of the first row of each node, ascending.
    """

    of_row_N: np.ndarray
    first_row_U: np.ndarray


def keys_of(vectors_ND: np.ndarray) -> np.ndarray:
    """A number for each vector, uint64: equal for equal vectors, and seldom equal for others.

    The sum of the vector's 64-bit words, each times an odd number of its own, modulo 2^64 (multiplicative hashing).

    Args:
        vectors_ND: contiguous float32.
    """
    count, dimensions = vectors_ND.shape
    words = (dimensions + 1) // 2
    factors = np.random.default_rng(0).integers(0, 2**63, words, np.uint64) * np.uint64(2) + np.uint64(1)
    keys_N = np.empty(count, np.uint64)
    padded = np.zeros((min(count, _BLOCK_ROWS), 2 * words), np.float32) if dimensions % 2 else None
    for start in range(0, count, _BLOCK_ROWS):
        block_BD = vectors_ND[start : start + _BLOCK_ROWS]
        if padded is not None:
            padded[: len(block_BD), :dimensions] = block_BD
            block_BD = padded[: len(block_BD)]
        np.einsum("ij,j->i", block_BD.view(np.uint64), factors, out=keys_N[start : start + len(block_BD)])
    return keys_N


def digests_of(vectors_MD: np.ndarray) -> np.ndarray:
    """A digest of each vector: equal for equal vectors and for no others; M of 16 bytes each."""
    digests = b"".join(hashlib.blake2b(vector, digest_size=_DIGEST_BYTES).digest() for vector in vectors_MD)
    return np.frombuffer(digests, f"V{_DIGEST_BYTES}")


def nodes_of(keys_N: np.ndarray, is_zero_N: np.ndarray, digests: Callable[[np.ndarray], np.ndarray]) -> Nodes:
    """Tell which rows share a vector.

    Args:
        keys_N: `keys_of` all rows.
        is_zero_N: rows that are to be in no node.
        digests: from M positions, ascending, to the `digests_of` their rows; asked only where keys are equal.
    """
    first_N = np.arange(len(keys_N))
    order_N = np.argsort(keys_N, kind="stable")
    is_same = keys_N[order_N[1:]] == keys_N[order_N[:-1]]
    shares_N = np.zeros(len(keys_N), bool)
    shares_N[order_N[1:][is_same]] = shares_N[order_N[:-1][is_same]] = True
    asked = np.flatnonzero(shares_N & ~is_zero_N)
    if len(asked):
        _, first, group = np.unique(digests(asked), return_index=True, return_inverse=True)
        first_N[asked] = asked[first[group]]
    is_first_N = (first_N == np.arange(len(keys_N))) & ~is_zero_N
    node_of_first_N = np.cumsum(is_first_N) - 1
    return Nodes(np.where(is_zero_N, NO_NODE, node_of_first_N[first_N]), np.flatnonzero(is_first_N))
