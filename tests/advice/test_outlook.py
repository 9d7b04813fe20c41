"""What is promised: near the accuracy that comes of it, and inside of its interval as often as it says.

Shape legend: N images, T test images, D length of a vector, K classes.
"""

import numpy as np
import pytest

from tlray.advice.inputs.sample import FOLDS, folds
from tlray.advice.measuring.probes import HALF, held_out
from tlray.advice.verdict.outlook import Outlook
from tlray.training.examples.metrics import Estimate, wilson

TASKS = 150
TEST_IMAGES = 2000
WHOLE = FOLDS / (FOLDS - 1)
"""Labels of all folds, as a multiple of those that cross-validation trains on."""


def fitted(features_ND: np.ndarray, targets_N: np.ndarray, classes: int) -> np.ndarray:
    """A linear head in closed form."""
    inputs_ND = np.c_[features_ND, np.ones(len(features_ND))]
    square_DD = inputs_ND.T @ inputs_ND + np.eye(inputs_ND.shape[1])
    return np.linalg.solve(square_DD, inputs_ND.T @ np.eye(classes)[targets_N])


def predicted(head_DK: np.ndarray, features_ND: np.ndarray) -> np.ndarray:
    return (np.c_[features_ND, np.ones(len(features_ND))] @ head_DK).argmax(axis=1)


class Task:
    """Classes of normally distributed vectors, as several networks of slightly different quality see them.

    Attributes:
        right: of each network, which images cross-validation tells right.
        half: likewise, with half of the labels.
        truth: of each network, the accuracy on other images of a head on all of these.
    """

    def __init__(self, seed: int, *, images: int, classes: int, networks: int, signal: float, unlike: float) -> None:
        generator = np.random.default_rng(seed)
        targets_N, targets_T = (generator.permutation(np.arange(rows) % classes) for rows in (images, TEST_IMAGES))
        means_KD = generator.normal(size=(classes, 16))
        noises = [generator.normal(size=(rows, 16)) for rows in (images, TEST_IMAGES)]
        folds_N = folds(targets_N, np.arange(images), seed)
        self.right, self.half, self.truth = [], [], []
        for _ in range(networks):
            quality = signal * (1 + unlike * generator.normal())
            features_ND, features_TD = (
                quality * means_KD[targets] + 1.25 * noise + 0.8 * generator.normal(size=noise.shape)
                for targets, noise in zip((targets_N, targets_T), noises, strict=True)
            )
            predicted_N, half_N = np.empty_like(targets_N), np.empty_like(targets_N)
            for fold in range(FOLDS):
                train, test = np.flatnonzero(folds_N != fold), np.flatnonzero(folds_N == fold)
                for rows, into_N in ((train, predicted_N), (held_out(targets_N, train, HALF, seed), half_N)):
                    into_N[test] = predicted(fitted(features_ND[rows], targets_N[rows], classes), features_ND[test])
            self.right.append(predicted_N == targets_N)
            self.half.append(half_N == targets_N)
            whole = predicted(fitted(features_ND, targets_N, classes), features_TD)
            self.truth.append(float((whole == targets_T).mean()))

    @property
    def best(self) -> int:
        return int(np.argmax([right.mean() for right in self.right]))

    def promised(self) -> Estimate:
        best = self.best
        outlook = Outlook.of(self.right, self.right[best], self.half[best], seed=0)
        return outlook.promise(self.right[best].mean() - outlook.optimism, outlook.error, WHOLE)


@pytest.mark.parametrize(
    "shape",
    [
        {"images": 240, "classes": 10, "networks": 8, "signal": 0.9, "unlike": 0.1},
        {"images": 160, "classes": 5, "networks": 16, "signal": 0.7, "unlike": 0.02},
        {"images": 120, "classes": 3, "networks": 2, "signal": 0.6, "unlike": 0.2},
    ],
)
def test_the_interval_holds_about_as_often_as_it_says(shape: dict) -> None:
    """Of tasks whose truth is known: near 95 %, more often than the plain interval of cross-validation, and without bias."""
    inside, plainly, bias, width, plain_width = [], [], [], [], []
    for seed in range(TASKS):
        task = Task(seed, **shape)
        promised, truth = task.promised(), task.truth[task.best]
        plain = wilson(int(task.right[task.best].sum()), len(task.right[task.best]))
        inside.append(promised.low <= truth <= promised.high)
        plainly.append(plain.low <= truth <= plain.high)
        bias.append(promised.value - truth)
        width.append(promised.high - promised.low)
        plain_width.append(plain.high - plain.low)
    assert np.mean(inside) >= max(0.9, np.mean(plainly)), (np.mean(inside), np.mean(plainly))
    assert np.mean(width) < 1.6 * np.mean(plain_width), (np.mean(width), np.mean(plain_width))
    assert abs(np.mean(bias)) < 0.15 * np.mean(width), (np.mean(bias), np.mean(width))


def test_the_best_of_many_alike_is_flattered_and_the_promise_is_not() -> None:
    """Of twenty coins, each right in half of the images, the luckiest seems to be right in more."""
    measured, promised = [], []
    for seed in range(40):
        right = list(np.random.default_rng(seed).random((20, 100)) < 0.5)
        best_N = max(right, key=np.sum)
        outlook = Outlook.of(right, best_N, None, seed)
        measured.append(best_N.mean())
        promised.append(outlook.promise(best_N.mean() - outlook.optimism, outlook.error, 1.0).value)
    assert np.mean(measured) > 0.57
    assert abs(np.mean(promised) - 0.5) < 0.02


def test_a_single_probe_without_a_curve_is_promised_as_it_was_measured() -> None:
    right_N = np.arange(200) % 10 != 0
    outlook = Outlook.of([right_N], right_N, None, seed=0)
    assert (outlook.optimism, outlook.exponent) == (0, 0)
    promised, plain = outlook.promise(0.9, outlook.error, 2.0), wilson(180, 200)
    assert promised.value == pytest.approx(0.9)
    assert promised.low == pytest.approx(plain.low, abs=0.01) and promised.high == pytest.approx(plain.high, abs=0.01)


def test_errors_fall_as_a_power_of_the_labels_and_the_low_end_counts_on_nothing() -> None:
    """With a quarter wrong by all labels and half by half of them, errors are as 1 / labels; twice as many leave an eighth."""
    right_N, half_N = np.arange(400) % 4 != 0, np.arange(400) % 2 != 0
    outlook = Outlook.of([right_N], right_N, half_N, seed=0)
    assert outlook.exponent == pytest.approx(1, abs=0.01) and 0.02 < outlook.exponent_error < 0.3
    promised = outlook.promise(0.75, outlook.error, 2.0)
    assert promised.value == pytest.approx(0.875, abs=0.001) and promised.low < 0.75 < 0.9 < promised.high
    assert outlook.promise(0.75, outlook.error, 50.0) == promised  # nobody knows so far ahead
    fewer = outlook.promise(0.75, outlook.error, 0.9)
    assert fewer.value < 0.75 < fewer.high
    same = Outlook.of([right_N], right_N, right_N, seed=0).promise(0.75, outlook.error, 2.0)
    assert same.value == pytest.approx(0.75)
