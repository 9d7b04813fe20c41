"""Balanced classes and labels, against scikit-learn and torch; refused where they mean nothing, before any work."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_sample_weight
from torch import nn

from tests.training.heads.test_grid import ROWS, decays, make_data, quiet
from tests.training.tables import blobs, config_for
from tlray.errors import ConfigError
from tlray.training.examples.examples import Split
from tlray.training.examples.losses import row_losses, row_weights
from tlray.training.heads.conjugate_gradients import conjugate_gradients
from tlray.training.heads.trials import Data, Schedule
from tlray.training.train import train


def labels(classes: np.ndarray) -> np.ndarray:
    return np.stack([classes == 0, classes % 2 == 0], axis=1).astype(np.float32)


def test_weights_are_those_of_scikit_learn_and_the_loss_that_of_torch() -> None:
    _, classes = blobs(ROWS)
    targets = labels(classes)
    weights_NK = row_weights(targets, np.arange(ROWS), "multi", 2, "balanced")
    for label in range(2):
        assert np.allclose(weights_NK[:, label], compute_sample_weight("balanced", targets[:, label]))
    assert np.allclose(
        row_weights(classes, np.arange(ROWS), "single", 5, "balanced"), compute_sample_weight("balanced", classes)
    )
    scores_NK, of_torch = torch.randn(ROWS, 2), torch.from_numpy(targets)
    positives_K = of_torch.sum(dim=0)
    loss = nn.BCEWithLogitsLoss(pos_weight=(ROWS - positives_K) / positives_K, reduction="none")(scores_NK, of_torch)
    expected = (loss * ROWS / (2 * (ROWS - positives_K))).mean(dim=1)
    assert torch.allclose(row_losses(scores_NK, of_torch, "multi", weights_NK), expected, atol=1e-5)


def test_each_balanced_label_is_scikit_learns_logistic_regression() -> None:
    features, classes = blobs(ROWS)
    targets = labels(classes)
    plain = make_data(features, targets, "multi")
    data = Data(plain.vectors, plain.examples, row_weights(targets, np.arange(ROWS), "multi", 2, "balanced"))
    (fit,) = conjugate_gradients(data, decays(1e-2), Schedule(60, 60, refit=True), 8, quiet)
    x = data.matrix(Split.TRAIN, Split.VALIDATION)[1].numpy()
    for label in range(2):  # the loss is the mean over labels, so each has half of it
        penalty = 1 / (2 * 1e-2 * ROWS)
        oracle = LogisticRegression(C=penalty, class_weight="balanced", max_iter=5000, tol=1e-10).fit(x, targets[:, label])
        assert np.abs(fit.layers[0][0][label].numpy() - oracle.coef_[0]).max() < 2e-3 * np.abs(oracle.coef_).max()


def test_refused_before_any_work(tmp_path: Path) -> None:
    for changes in ({"task": "regression"}, {"task": "multi", "head": {"kind": "ridge"}}):
        with pytest.raises(ConfigError, match="class_weights balanced with"):  # no table is there, which would be said later
            train(config_for(tmp_path, class_weights="balanced", **changes))
