"""Classes that count the same: of networks and of heads, one label or several."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from tests.training.heads.test_grid import ROWS, decays, make_data, quiet
from tests.training.tables import blobs
from tlray.config import HeadConfig
from tlray.errors import ConfigError
from tlray.training.examples.examples import Split
from tlray.training.examples.losses import check_class_weights, row_losses, row_weights
from tlray.training.heads.conjugate_gradients import conjugate_gradients
from tlray.training.heads.trials import Data, Schedule


@pytest.fixture(scope="module")
def several() -> np.ndarray:
    """Of a rare and of a frequent label."""
    _, classes = blobs(ROWS)
    return np.stack([classes == 0, classes > 0], axis=1).astype(np.float32)


def test_balanced_is_scikit_learns() -> None:
    targets = np.array([0, 0, 0, 1, 2, 2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets)
    assert row_weights(targets, np.arange(6), "single", 4, "balanced").numpy() == pytest.approx(expected[targets])


def test_several_labels_are_weighted_as_torch_weights_positives(several: np.ndarray) -> None:
    scores, targets = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(0)), torch.from_numpy(several)
    weights = row_weights(several, np.arange(ROWS), "multi", 2, "balanced")
    assert weights.mean(dim=0).numpy() == pytest.approx(1)
    positives = targets.sum(dim=0)
    losses = nn.BCEWithLogitsLoss(reduction="none", pos_weight=(ROWS - positives) / positives)(scores, targets)
    expected = (losses * ROWS / (2 * (ROWS - positives))).mean(dim=1)
    torch.testing.assert_close(row_losses(scores, targets, "multi", weights), expected)


def test_heads_of_several_balanced_labels_are_scikit_learns(several: np.ndarray) -> None:
    features, _ = blobs(ROWS)
    plain = make_data(features, several, "multi")
    weights = row_weights(several, np.arange(ROWS), "multi", 2, "balanced")
    data = Data(plain.vectors, plain.examples, weights)
    (fit,) = conjugate_gradients(data, decays(1e-2), Schedule(60, 60, refit=True), 8, quiet)
    x = data.matrix(Split.TRAIN, Split.VALIDATION)[1].numpy()
    for label in range(2):  # the loss is the mean over labels, so each has half of it
        settings = {"C": 1 / (2 * 1e-2 * ROWS), "max_iter": 5000, "tol": 1e-10}
        oracle = LogisticRegression(**settings, class_weight="balanced").fit(x, several[:, label])
        unweighted = LogisticRegression(**settings).fit(x, several[:, label])
        assert np.abs(fit.layers[0][0][label].numpy() - oracle.coef_[0]).max() < 2e-3 * np.abs(oracle.coef_).max()
        assert np.abs(unweighted.intercept_ - oracle.intercept_) > 1e-2
        assert fit.layers[0][1][label].item() == pytest.approx(oracle.intercept_[0], abs=5e-3)


@pytest.mark.parametrize(("task", "kind"), [("regression", "linear"), ("multi", "ridge")])
def test_where_classes_cannot_be_balanced(task: str, kind: str) -> None:
    with pytest.raises(ConfigError, match="class_weights balanced with"):
        check_class_weights("balanced", task, HeadConfig(kind=kind))
