"""Layouts of vectors in two dimensions; as a program, UMAP's of the vectors that it is given.

`python -m tlray.search.service.backend.map.layout` reads an array of vectors as .npy from its standard input and writes their
coordinates as .npy to its standard output.

Shape legend: N rows, D dimensions, C components.
"""

import io
import os
import sys

import numpy as np

UMAP_COMPONENTS = 50
"""Few directions hold most of what makes neighbours, and UMAP's own search slows down with many."""

EXTRA_DIRECTIONS = 50
"""Directions more that the search for principal components carries along: the more, the closer it comes where components are
nearly equal."""

SEED = 0
"""A map is the same every time; UMAP then uses one thread."""

NICENESS = 10
"""The niceness of the program: what else the machine does goes first."""


def principal_components(vectors_ND: np.ndarray, count: int) -> np.ndarray:
    """Coordinates on the first principal components; zeros where there are fewer.

    By a randomised range finder with power iterations (Halko, Martinsson and Tropp 2011, SIAM Review 53, algorithms 4.4 and
    5.1): a fraction of a second where the exact decomposition of D in the thousands takes many.

    Returns:
        places_NC, float32.
    """
    if not vectors_ND.size:
        return np.zeros((len(vectors_ND), count), np.float32)
    centred_ND = (vectors_ND - vectors_ND.mean(axis=0, dtype=np.float64)).astype(np.float32)
    largest = np.abs(centred_ND).max()
    centred_ND /= largest or 1  # squares of any floats then fit float32
    width = min(count + EXTRA_DIRECTIONS, *centred_ND.shape)
    start_DC = np.random.default_rng(SEED).standard_normal((centred_ND.shape[1], width), dtype=np.float32)
    basis_NC = np.linalg.qr(centred_ND @ start_DC)[0]
    for _ in range(4):
        basis_NC = np.linalg.qr(centred_ND @ (centred_ND.T @ basis_NC))[0]
    left_CC, sizes_C, _ = np.linalg.svd(basis_NC.T @ centred_ND, full_matrices=False)
    places_NC = (basis_NC @ left_CC * (sizes_C * largest))[:, :count]
    padded_NC: np.ndarray = np.pad(places_NC, ((0, 0), (0, count - places_NC.shape[1])))
    return padded_NC


def scaled(places_N2: np.ndarray) -> np.ndarray:
    """Bring each coordinate into the range from -1 to 1."""
    within_N2: np.ndarray = places_N2 / np.maximum(np.abs(places_N2).max(axis=0, initial=0), np.finfo(np.float32).tiny)
    return within_N2


def umap_places(vectors_ND: np.ndarray) -> np.ndarray:
    """Coordinates by UMAP, places_N2 within -1..1."""
    import umap  # optional, and its compiler takes seconds to start

    reduced_NC = principal_components(vectors_ND, UMAP_COMPONENTS)
    places_N2: np.ndarray = umap.UMAP(metric="euclidean", random_state=SEED, n_jobs=1).fit_transform(reduced_NC)
    return scaled(places_N2 - places_N2.mean(axis=0))


def to_npy(array: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def from_npy(data: bytes) -> np.ndarray:
    """The array in the bytes of a .npy file."""
    array: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    return array


if __name__ == "__main__":
    os.nice(NICENESS)
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # what libraries print is no answer
    answers.write(to_npy(umap_places(from_npy(sys.stdin.buffer.read()))))
    answers.flush()
