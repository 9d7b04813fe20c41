"""What "near" means, and the form in which vectors are compared.

*Nearness* is larger for nearer vectors: the cosine, the inner product, or minus the squared L2 distance. A *prepared* vector
is contiguous float32, and of unit length where the metric is cosine.

Shape legend: B vectors, K neighbours, D dimensions.
"""

from typing import Literal

import faiss
import numpy as np

Metric = Literal["cosine", "ip", "l2"]


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


def prepare(vectors_BD: np.ndarray, metric: Metric) -> None:
    """Like `prepared`, in place, for contiguous float32 vectors."""
    if metric == "cosine":
        faiss.normalize_L2(vectors_BD)


def scores_of(nearness_BK: np.ndarray, metric: Metric) -> np.ndarray:
    """What a user is shown for a nearness: the cosine, the inner product, or the L2 distance."""
    return np.sqrt(np.maximum(-nearness_BK, 0)) if metric == "l2" else nearness_BK
