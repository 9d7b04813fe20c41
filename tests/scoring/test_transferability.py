"""LogME, H-score and LEEP against the formulas of their papers, written anew, and against scikit-learn and SciPy."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.covariance import ledoit_wolf
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.linear_model import LogisticRegression

from tlray.scoring import h_score, leep, logme

Data = tuple[np.ndarray, np.ndarray]


def made(rows: int, dimensions: int, classes: int, signal: float) -> Data:
    generator = np.random.default_rng(rows)
    labels = generator.integers(classes, size=rows)
    centres = generator.standard_normal((classes, dimensions)) * signal
    return (centres[labels] + generator.standard_normal((rows, dimensions))).astype(np.float32), labels


DATA: dict[str, Data] = {
    "iris": load_iris(return_X_y=True),
    "wine": load_wine(return_X_y=True),
    "digits": tuple(each[:400] for each in load_digits(return_X_y=True)),  # has columns that are always 0
    "wide": made(60, 150, 4, 0.5),
    "noise": made(300, 20, 3, 0.0),
}


def evidence(features: np.ndarray, y: np.ndarray, alpha: float, beta: float) -> float:
    """Equation 2 of the paper as it stands there."""
    rows, dimensions = features.shape
    precision = alpha * np.eye(dimensions) + beta * features.T @ features
    m = beta * np.linalg.solve(precision, features.T @ y)
    return (
        rows / 2 * math.log(beta)
        + dimensions / 2 * math.log(alpha)
        - rows / 2 * math.log(2 * math.pi)
        - beta / 2 * float(((features @ m - y) ** 2).sum())
        - alpha / 2 * float((m**2).sum())
        - np.linalg.slogdet(precision)[1] / 2
    )


def fixed_point(features: np.ndarray, y: np.ndarray) -> float:
    """The paper's algorithm 1, until nothing moves any more."""
    values, vectors = np.linalg.eigh(features.T @ features)
    values = np.maximum(values, 0)
    rows, alpha, beta = len(y), 1.0, 1.0
    projected = vectors.T @ (features.T @ y)
    for _ in range(20_000):
        gamma = (beta * values / (alpha + beta * values)).sum()
        m = vectors @ (beta * projected / (alpha + beta * values))
        new = gamma / float((m**2).sum()), (rows - gamma) / float(((features @ m - y) ** 2).sum())
        done = abs(math.log(new[0] / alpha)) + abs(math.log(new[1] / beta)) < 1e-13
        alpha, beta = new
        if done:
            break
    return evidence(features, y, alpha, beta)


@pytest.mark.parametrize("name", ["iris", "wine", "digits", "wide"])
def test_logme_equals_the_fixed_point_of_the_paper(name: str) -> None:
    features, labels = DATA[name]
    features = features.astype(np.float64)
    expected = np.mean([fixed_point(features, (labels == one).astype(float)) for one in np.unique(labels)]) / len(labels)
    assert logme(features, labels) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["iris", "wine", "noise"])
def test_logme_is_the_greatest_evidence_that_an_optimiser_finds(name: str) -> None:
    features, labels = DATA[name]
    features = features.astype(np.float64)
    total = 0.0
    for one in np.unique(labels):
        y = (labels == one).astype(float)
        starts = [(a, b) for a in (-4.0, 0.0, 4.0) for b in (0.0, 3.0)]

        def cost(at: np.ndarray, y: np.ndarray = y) -> float:
            alpha, beta = np.exp(np.clip(at, -20, 20))
            return -evidence(features, y, alpha, beta)

        options = {"xatol": 1e-8, "fatol": 1e-10, "maxiter": 2000}
        found = [minimize(cost, start, method="Nelder-Mead", options=options).fun for start in starts]
        total -= min(found)
    assert logme(features, labels) == pytest.approx(total / len(np.unique(labels)) / len(labels), abs=1e-6)


def test_logme_prefers_features_that_say_something() -> None:
    features, labels = DATA["iris"]
    noise = np.random.default_rng(0).standard_normal(features.shape)
    assert logme(features, labels) > logme(noise, labels)
    assert math.isfinite(logme(np.zeros((20, 3)), np.arange(20) % 2))


@pytest.mark.parametrize("name", DATA)
def test_h_score_equals_the_formula_with_the_covariance_of_scikit_learn(name: str) -> None:
    features, labels = DATA[name]
    features = features.astype(np.float64)
    shrunk, alpha = ledoit_wolf(features)
    centred = features - features.mean(axis=0)
    between = np.cov(np.stack([centred[labels == one].mean(axis=0) for one in labels]), rowvar=False, bias=True)
    expected = np.trace(np.linalg.pinv(shrunk) @ ((1 - alpha) * between))
    assert h_score(features, labels) == pytest.approx(expected, abs=1e-6)


def test_h_score_of_constant_features_is_nothing() -> None:
    assert h_score(np.ones((10, 3)), np.arange(10) % 2) == 0


def test_leep_equals_sums_over_every_pair() -> None:
    features, labels = load_digits(return_X_y=True)
    own = LogisticRegression(max_iter=200).fit(features[:200] / 16, labels[:200] % 4)  # a network of four other classes
    theta, targets = own.predict_proba(features[300:400] / 16), labels[300:400]
    rows, sources = theta.shape
    joint = {(y, z): 0.0 for y in range(10) for z in range(sources)}
    for i in range(rows):
        for z in range(sources):
            joint[targets[i], z] += theta[i, z] / rows
    marginal = [sum(joint[y, z] for y in range(10)) for z in range(sources)]
    total = 0.0
    for i in range(rows):
        total += math.log(sum(joint[targets[i], z] / marginal[z] * theta[i, z] for z in range(sources)))
    assert leep(theta, targets) == pytest.approx(total / rows, abs=1e-6)


def test_leep_of_a_perfect_and_of_a_blind_network() -> None:
    labels = np.arange(30) % 3
    assert leep(np.eye(5)[labels], labels) == pytest.approx(0, abs=1e-12)
    assert leep(np.full((30, 5), 0.2), labels) == pytest.approx(math.log(1 / 3), abs=1e-12)
