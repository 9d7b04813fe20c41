"""A map of a collection: rows in two dimensions, near ones near each other as far as two dimensions allow.

Shape legend: N rows, D dimensions.
"""

import numpy as np
import pyarrow as pa

from tlray.search.api import Point
from tlray.search.searcher import Searcher

MAP_ROWS = 3000
"""Points that a browser draws and a person can tell apart; evenly spread over the rows."""


def map_of(searcher: Searcher) -> list[Point]:
    """The first two principal components of a sample of rows, each scaled to -1..1."""
    rows = searcher.rows
    at = np.unique(np.linspace(0, len(rows) - 1, min(MAP_ROWS, len(rows))).astype(np.int64))
    places_N2 = principal_components(searcher.exact.take(rows.ids_N[at]))
    labels = rows.table["label"].take(pa.array(at)).to_pylist()
    return [
        Point(id=int(row_id), x=round(float(x), 4), y=round(float(y), 4), label=label)
        for row_id, (x, y), label in zip(rows.ids_N[at], places_N2, labels, strict=True)
    ]


def principal_components(vectors_ND: np.ndarray) -> np.ndarray:
    """Coordinates on the first two principal components, scaled to -1..1; zeros where there are fewer.

    By the eigenvectors of the smaller of the covariance and the Gram matrix, as D may be tens of thousands.
    """
    centred_ND = vectors_ND.astype(np.float64) - vectors_ND.mean(axis=0)
    if centred_ND.shape[1] <= centred_ND.shape[0]:
        _, axes = np.linalg.eigh(centred_ND.T @ centred_ND)
        places_N2 = centred_ND @ axes[:, ::-1][:, :2]
    else:
        values, axes = np.linalg.eigh(centred_ND @ centred_ND.T)
        places_N2 = (axes * np.sqrt(np.maximum(values, 0)))[:, ::-1][:, :2]
    missing = 2 - places_N2.shape[1]
    places_N2 = np.pad(places_N2, ((0, 0), (0, missing)))
    scaled: np.ndarray = places_N2 / np.maximum(np.abs(places_N2).max(axis=0), np.finfo(np.float64).tiny)
    return scaled
