"""Ridge in closed form, against scikit-learn; and the map-reduce, against all rows at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from tests.training.heads.test_grid import make_data
from tests.training.tables import blobs
from tlray.training.examples.examples import Split
from tlray.training.heads.ridge import Moments, moments_of, train_ridge
from tlray.training.heads.trials import Trial, scores_of, to_head

PENALTIES = [1e-6, 1e-2, 10.0]


def trials(*values: float) -> list[Trial]:
    return [Trial("embedding", "ridge", value) for value in values]


@pytest.mark.parametrize("dimensions", [16, 300])
def test_all_penalties_are_scikit_learn(dimensions: int) -> None:
    features, classes = blobs(200, dimensions=dimensions)
    targets = np.eye(5)[classes]
    weights = np.random.default_rng(0).uniform(0.5, 2, 200)
    ours, biases = Moments.of(features, targets, weights).solve(PENALTIES)
    for penalty, weight, bias in zip(PENALTIES, ours, biases, strict=True):
        oracle = Ridge(alpha=penalty * weights.sum(), solver="svd").fit(features.astype(np.float64), targets, weights)
        scale = np.abs(oracle.coef_).max()
        assert np.abs(weight.T - oracle.coef_).max() < 1e-5 * scale
        assert np.allclose(bias, oracle.intercept_, atol=1e-5 * max(1, scale))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(0, 1000))
def test_moments_of_parts_are_those_of_the_whole(sizes: list[int], offset: int) -> None:
    rng = np.random.default_rng(offset)
    # Far from zero, where X'X - n mean mean' loses all digits.
    features, targets = rng.standard_normal((sum(sizes), 4)) + 1e5 + offset, rng.standard_normal((sum(sizes), 2))
    weights = rng.uniform(0.1, 3, sum(sizes))
    total, at = None, 0
    for size in rng.permutation(sizes):
        part = Moments.of(features[at : at + size], targets[at : at + size], weights[at : at + size])
        total, at = part if total is None else total.merge(part), at + size
    mean = np.average(features, axis=0, weights=weights)
    centred = features - mean
    assert np.allclose(total.mean_D, mean, rtol=1e-13)
    assert np.allclose(total.xx_DD, (weights[:, None] * centred).T @ centred, rtol=1e-8, atol=1e-7)
    assert np.allclose(total.xy_DK, (weights[:, None] * centred).T @ targets, rtol=1e-8, atol=1e-7)


def test_a_regression_of_a_table_is_scikit_learn() -> None:
    features, classes = blobs(400)
    targets = (np.stack([classes, classes**2], axis=1) + np.random.default_rng(0).standard_normal((400, 2))).astype(np.float32)
    data = make_data(features, targets, "regression")
    (fit,) = train_ridge(data, trials(1e-2))
    x = data.matrix(Split.TRAIN)[1].numpy()
    oracle = Ridge(alpha=1e-2 * len(x)).fit(x, targets[: len(x)])
    std = targets[: len(x)].std(axis=0)  # of standardised targets
    assert np.allclose(fit.layers[0][0].numpy() * std[:, None], oracle.coef_, atol=1e-4)
    assert fit.factor == 1
    held = data.matrix(Split.VALIDATION)[1].numpy()
    assert fit.validation_loss == pytest.approx(np.mean(((oracle.predict(held) - targets[len(x) :]) / std) ** 2), rel=1e-4)
    at = data.examples.positions(Split.VALIDATION)
    assert np.allclose(scores_of(to_head(fit, data, dropout=0.0), data)[at], oracle.predict(held), atol=1e-3)


def test_scores_of_classes_become_logits() -> None:
    features, classes = blobs(400)
    for targets, task in ((classes, "single"), (np.eye(5, dtype=np.float32)[classes], "multi")):
        data = make_data(features, targets, task)
        fits = train_ridge(data, trials(*PENALTIES))
        assert all(fit.factor > 1.5 for fit in fits)
        (again,) = train_ridge(data, trials(PENALTIES[1]), [fits[1].factor])
        assert again.factor == fits[1].factor and again.validation_losses == ()


def test_a_block_at_a_time_is_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    features, classes = blobs(400)
    data = make_data(features, classes)
    whole = moments_of(data, Split.TRAIN)
    monkeypatch.setattr("tlray.training.examples.table_vectors.BLOCK_ROWS", 7)
    parts = moments_of(data, Split.TRAIN)
    assert np.allclose(parts.xx_DD, whole.xx_DD, rtol=1e-10) and np.allclose(parts.xy_DK, whole.xy_DK, rtol=1e-10)
