"""A map of a collection: rows in two dimensions, near ones near each other as far as two dimensions allow.

By UMAP where the package umap-learn is installed (extra `map`), which keeps neighbours together, else by principal components.

Shape legend: N rows, D dimensions.
"""

import numpy as np
import pyarrow as pa

from tlray.search.query.searcher import Searcher
from tlray.search.service.backend.schema import Point

MAP_ROWS = 3000
"""Points that a browser draws and a person can tell apart; evenly spread over the rows."""


UMAP_LEAST_ROWS = 200
"""UMAP looks at 15 neighbours of each row; fewer rows than some times that are taken in at a glance in any layout."""

UMAP_DIMENSIONS = 50
SEED = 0
"""A map is the same every time; UMAP then uses one thread."""


def map_of(searcher: Searcher) -> list[Point]:
    """A sample of rows laid out in two dimensions, each scaled to -1..1."""
    rows = searcher.rows
    at = np.unique(np.linspace(0, len(rows) - 1, min(MAP_ROWS, len(rows))).astype(np.int64))
    places_N2 = layout(searcher.vectors(at))
    labels = rows.table["label"].take(pa.array(at)).to_pylist()
    return [
        Point(id=int(row_id), x=round(float(x), 4), y=round(float(y), 4), label=label)
        for row_id, (x, y), label in zip(rows.ids_N[at], places_N2, labels, strict=True)
    ]


def layout(vectors_ND: np.ndarray) -> np.ndarray:
    """Coordinates by UMAP where it is installed and there are enough rows, else by principal components; within -1..1."""
    if len(vectors_ND) < UMAP_LEAST_ROWS:
        return principal_components(vectors_ND)
    try:
        import umap  # optional, and its compiler takes seconds to start
    except ImportError:
        return principal_components(vectors_ND)
    # Few directions hold most of what makes neighbours; UMAP's own search slows down with many.
    reduced_ND = components(vectors_ND, UMAP_DIMENSIONS)
    places_N2: np.ndarray = umap.UMAP(metric="euclidean", random_state=SEED, n_jobs=1).fit_transform(reduced_ND)
    return scaled(places_N2 - places_N2.mean(axis=0))


def principal_components(vectors_ND: np.ndarray) -> np.ndarray:
    """Coordinates on the first two principal components, scaled to -1..1; zeros where there are fewer."""
    return scaled(components(vectors_ND, 2))


def components(vectors_ND: np.ndarray, count: int) -> np.ndarray:
    """Coordinates on the first principal components, zeros where there are fewer.

    By the eigenvectors of the smaller of the covariance and the Gram matrix, as D may be tens of thousands.
    """
    centred_ND = vectors_ND.astype(np.float64) - vectors_ND.mean(axis=0)
    if centred_ND.shape[1] <= centred_ND.shape[0]:
        _, axes = np.linalg.eigh(centred_ND.T @ centred_ND)
        places_NC = centred_ND @ axes[:, ::-1][:, :count]
    else:
        values, axes = np.linalg.eigh(centred_ND @ centred_ND.T)
        places_NC = (axes * np.sqrt(np.maximum(values, 0)))[:, ::-1][:, :count]
    padded: np.ndarray = np.pad(places_NC, ((0, 0), (0, count - places_NC.shape[1])))
    return padded


def scaled(places_N2: np.ndarray) -> np.ndarray:
    """Each coordinate within -1..1."""
    within_N2: np.ndarray = places_N2 / np.maximum(np.abs(places_N2).max(axis=0), np.finfo(np.float64).tiny)
    return within_N2
