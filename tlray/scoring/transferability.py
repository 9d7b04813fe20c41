"""Scores that try to tell from features and labels alone how well a network transfers: LogME, H-score, LEEP.

They rank networks; none of them is an accuracy, and `tlray advise` shows them beside accuracies, which decide.

Shape legend: N images, D embedding length, R rank of the features, K classes, Z classes that the network was trained on, G
values on a grid.
"""

import numpy as np

_GRID = np.geomspace(1e-10, 1e10, 401)
"""Ratios alpha / beta that are tried, relative to the mean squared singular value; between them the search goes on."""

_GOLDEN = (5**0.5 - 1) / 2
_NARROWINGS = 80
"""Steps of golden-section search: the bracket, two steps of the grid, is then known to rounding."""


def logme(features_ND: np.ndarray, labels_N: np.ndarray) -> float:
    """Logarithm of the maximum evidence of a Bayesian linear model from features to labels, a label.

    You et al. 2021, LogME: Practical Assessment of Pre-trained Models for Transfer Learning (arXiv 2102.11005), equation 2. For
    each class with its column y of zeros and ones, with A = alpha I + beta F'F and m = beta A^-1 F'y::

        log p(y | F) = N/2 log(beta) + D/2 log(alpha) - N/2 log(2 pi) - beta/2 |F m - y|^2 - alpha/2 |m|^2 - 1/2 log det(A)

    maximised over alpha and beta; the score is its mean over classes, divided by N. With t = alpha / beta and
    Q(t) = min_w |F w - y|^2 + t |w|^2 the best beta is N / Q(t), so that one variable is left; the authors iterate to a fixed
    point instead.

    Args:
        features_ND: of the images.
        labels_N: any values.

    Returns:
        Larger is better.
    """
    classes = np.unique(labels_N)
    targets_NK = (labels_N[:, None] == classes).astype(np.float64)
    left_NR, singular_R, _ = np.linalg.svd(features_ND.astype(np.float64), full_matrices=False)
    kept_R = singular_R > np.finfo(np.float64).eps * max(features_ND.shape) * singular_R.max(initial=0)
    left_NR, square_R = left_NR[:, kept_R], singular_R[kept_R] ** 2
    inside_KR = (targets_NK.T @ left_NR) ** 2
    outside_K = np.maximum((targets_NK**2).sum(axis=0) - inside_KR.sum(axis=1), 0)
    if not len(square_R):  # features that say nothing: all that is left is the noise
        square_R, inside_KR = np.ones(1), np.zeros((len(classes), 1))
    evidence_K = [_best_evidence(square_R, *one, rows=len(labels_N)) for one in zip(inside_KR, outside_K, strict=True)]
    return float(np.mean(evidence_K) / len(labels_N))


def _best_evidence(square_R: np.ndarray, inside_R: np.ndarray, outside: float, *, rows: int) -> float:
    """Maximise a class's evidence over t: on a grid of its logarithm, then by golden-section search around the best."""
    middle = square_R.mean()

    def evidence(log_t_G: np.ndarray) -> np.ndarray:
        t_G1 = np.exp(log_t_G)[:, None]
        misfit_G = outside + (inside_R * (t_G1 / (square_R + t_G1))).sum(axis=1)
        beta_G = rows / np.maximum(misfit_G, np.finfo(np.float64).tiny)
        values_G: np.ndarray = rows / 2 * (np.log(beta_G) - np.log(2 * np.pi) - 1) - np.log1p(square_R / t_G1).sum(axis=1) / 2
        return values_G

    log_t_G = np.log(_GRID * middle)
    best = int(np.argmax(evidence(log_t_G)))
    low, high = log_t_G[max(0, best - 1)], log_t_G[min(len(log_t_G) - 1, best + 1)]
    for _ in range(_NARROWINGS):
        inner = np.array([high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)])
        first, second = evidence(inner)
        low, high = (low, inner[1]) if first > second else (inner[0], high)
    return float(evidence(np.array([(low + high) / 2]))[0])


def h_score(features_ND: np.ndarray, labels_N: np.ndarray) -> float:
    """How much of the features' variance lies between classes, after whitening; with a shrunk covariance.

    Bao et al. 2019, An information-theoretic approach to transferability in task transfer learning (ICIP):
    tr(cov(f)^-1 cov(E[f | y])). Ibrahim et al. 2021, Newer is not always better (arXiv 2110.06893), with the covariance of
    Ledoit and Wolf 2004, A well-conditioned estimator for large-dimensional covariance matrices: with S = cov(f),
    s = tr(S) / D and their shrinkage a::

        tr(((1 - a) S + a s I)^-1 (1 - a) cov(E[f | y])),   a = min(b, d) / d,
        b = 1/N^2 sum_i |x_i x_i' - S|_F^2,   d = |S - s I|_F^2

    Args:
        features_ND: of the images.
        labels_N: any values.

    Returns:
        Larger is better; from 0 to at most the number of classes less 1.
    """
    centred_ND = features_ND.astype(np.float64)
    centred_ND -= centred_ND.mean(axis=0)
    rows, dimensions = centred_ND.shape
    covariance_DD = centred_ND.T @ centred_ND / rows
    spread = float(np.trace(covariance_DD)) / dimensions
    if spread == 0:
        return 0.0
    squares = float((covariance_DD**2).sum())
    distance = squares - dimensions * spread**2
    noise = (float(((centred_ND**2).sum(axis=1) ** 2).sum()) / rows - squares) / rows
    shrinkage = min(noise, distance) / distance if distance > 0 else 1.0
    classes, class_N = np.unique(labels_N, return_inverse=True)
    counts_K = np.bincount(class_N)
    means_KD = np.zeros((len(classes), dimensions))
    np.add.at(means_KD, class_N, centred_ND)
    means_KD /= counts_K[:, None]
    between_DD = (means_KD * (counts_K / rows)[:, None]).T @ means_KD
    shrunk_DD = (1 - shrinkage) * covariance_DD + shrinkage * spread * np.eye(dimensions)
    return float(np.trace(np.linalg.solve(shrunk_DD, (1 - shrinkage) * between_DD)))


def leep(probabilities_NZ: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean log-likelihood of labels that are drawn by way of the classes which a network was trained on.

    Nguyen et al. 2020, LEEP: A New Measure to Evaluate Transferability of Learned Representations (arXiv 2002.12462), equation
    2. With theta(x_i)_z the network's probability of its own class z::

        P(y, z) = 1/N sum of theta(x_i)_z over i with y_i = y,   P(y | z) = P(y, z) / P(z)
        LEEP = 1/N sum_i log(sum_z P(y_i | z) theta(x_i)_z)

    Args:
        probabilities_NZ: each row sums to 1.
        labels_N: any values.

    Returns:
        At most 0; larger is better.
    """
    likely_NZ = probabilities_NZ.astype(np.float64)
    classes, class_N = np.unique(labels_N, return_inverse=True)
    joint_KZ = np.zeros((len(classes), likely_NZ.shape[1]))
    np.add.at(joint_KZ, class_N, likely_NZ)
    total_Z = joint_KZ.sum(axis=0)
    given_KZ = np.divide(joint_KZ, total_Z, out=np.zeros_like(joint_KZ), where=total_Z > 0)
    return float(np.log((given_KZ[class_N] * likely_NZ).sum(axis=1)).mean())
