"""Labels that are probably wrong, by predictions for images that the model was not trained on.

Shape legend: N images, K classes.
"""

import numpy as np


def label_errors(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Rows whose label is probably wrong, the surest first.

    Northcutt, Jiang and Chuang 2021, Confident Learning (arXiv 1911.00068): a class's threshold t_j is the mean probability of
    class j over the rows that are labelled j. A row is counted to the most likely of the classes whose probability reaches
    their threshold; where that is not its own label, the label is suspected (off the diagonal of their confident joint). They
    come in order of normalised margin, the probability of the label less the greatest of the others.

    Args:
        probabilities_NK: predicted for each row by a model that was not trained on it.
        labels_N: int64, positions among the K classes.

    Returns:
        int64, positions of the suspected rows.
    """
    rows, outputs = np.arange(len(labels_N)), probabilities_NK.shape[1]
    own_N = probabilities_NK[rows, labels_N].astype(np.float64)
    counts_K = np.bincount(labels_N, minlength=outputs)
    sums_K = np.bincount(labels_N, own_N, minlength=outputs)
    thresholds_K = np.where(counts_K > 0, sums_K / np.maximum(counts_K, 1), np.inf)
    sure_NK = np.where(probabilities_NK >= thresholds_K, probabilities_NK, -np.inf)
    counted_N = sure_NK.argmax(axis=1)
    suspected = np.flatnonzero(np.isfinite(sure_NK.max(axis=1)) & (counted_N != labels_N))
    others_NK = probabilities_NK.astype(np.float64).copy()
    others_NK[rows, labels_N] = -np.inf
    margin_N = own_N - others_NK.max(axis=1)
    ordered: np.ndarray = suspected[np.argsort(margin_N[suspected], kind="stable")]
    return ordered
