"""Measures, against scikit-learn and SciPy."""

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import binomtest
from sklearn import metrics as oracle

from tlray.scoring import near_duplicate_groups, probabilities_of
from tlray.training.examples.metrics import (
    MAX_CONFUSION,
    Estimate,
    Evaluation,
    average_precision,
    calibration_error,
    evaluate,
    wilson,
)

NAMES = tuple("abcdefg")


@pytest.fixture(scope="module")
def scored() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.integers(6, size=500)  # nothing of the last class
    return (rng.standard_normal((500, 7)) + 1.5 * np.eye(7)[truth]).astype(np.float32), truth


def test_classes(scored: tuple[np.ndarray, np.ndarray]) -> None:
    scores, truth = scored
    found = evaluate(scores, truth, "single", NAMES)
    guess, likely = scores.argmax(axis=1), probabilities_of(scores, "single")
    assert found.accuracy.value == oracle.accuracy_score(truth, guess)
    assert found.top5.value == pytest.approx(oracle.top_k_accuracy_score(truth, scores, k=5, labels=range(7)))
    assert found.macro_f1.value == pytest.approx(oracle.f1_score(truth, guess, labels=range(6), average="macro"))
    assert found.macro_f1.low < found.macro_f1.value < found.macro_f1.high
    assert found.loss == pytest.approx(oracle.log_loss(truth, likely, labels=range(7)), rel=1e-5)
    assert np.array_equal(found.confusion, oracle.confusion_matrix(truth, guess, labels=range(7)))
    expected = oracle.precision_recall_fscore_support(truth, guess, labels=range(7), zero_division=0)
    rows = [(row.precision, row.recall, row.f1, row.rows) for row in found.per_class]
    assert np.allclose(rows, np.transpose(expected))
    assert found.score == found.accuracy.value


def test_several_labels() -> None:
    rng = np.random.default_rng(1)
    truth = (rng.random((300, 4)) < [0.5, 0.2, 0.05, 0]).astype(np.float32)
    scores = np.round(2 * truth - 1.2 + rng.standard_normal((300, 4)), 1)  # with ties
    found = evaluate(scores, truth, "multi", NAMES[:4])
    guess = scores > 0
    assert found.accuracy.value == oracle.accuracy_score(truth, guess)
    assert found.macro_f1.value == pytest.approx(oracle.f1_score(truth[:, :3], guess[:, :3], average="macro"))
    for at in range(3):
        expected = oracle.average_precision_score(truth[:, at], scores[:, at])
        assert found.per_class[at].average_precision == pytest.approx(expected)
    assert found.per_class[3].average_precision is None
    # scikit-learn's own mean would count the class that no row has as 0.
    expected = oracle.average_precision_score(truth[:, :3], scores[:, :3], average="macro")
    assert found.mean_average_precision.value == pytest.approx(expected)
    likely = probabilities_of(scores, "multi")
    assert found.loss == pytest.approx(
        np.mean([oracle.log_loss(truth[:, at], likely[:, at], labels=[0, 1]) for at in range(4)]), rel=1e-4
    )


def test_numbers() -> None:
    rng = np.random.default_rng(2)
    truth = rng.standard_normal((200, 2)).astype(np.float32)
    guess = truth + 0.3 * rng.standard_normal((200, 2))
    found = evaluate(guess, truth, "regression", NAMES[:2])
    assert found.r2.value == pytest.approx(oracle.r2_score(truth, guess)) and found.r2.low < found.r2.value < found.r2.high
    assert found.mean_squared_error.value == pytest.approx(oracle.mean_squared_error(truth, guess))
    assert found.per_class[1].mean_absolute_error == pytest.approx(oracle.mean_absolute_error(truth[:, 1], guess[:, 1]))
    assert evaluate(guess[:1], truth[:1], "regression", NAMES[:2]).r2.value == 0


@pytest.mark.parametrize(("right", "rows"), [(0, 10), (10, 10), (487, 500), (1, 3)])
def test_intervals_are_those_of_wilson(right: int, rows: int) -> None:
    found = wilson(right, rows)
    expected = binomtest(right, rows).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_calibration() -> None:
    sure, right = np.array([0.95, 0.95, 0.65, 0.65, 1.0]), np.array([True, True, True, False, True])
    assert calibration_error(sure, right) == pytest.approx((3 / 5) * abs(2.9 / 3 - 1) + (2 / 5) * 0.15)


def test_nothing_true_has_no_average_precision() -> None:
    assert average_precision(np.ones(3), np.zeros(3, bool)) is None


def test_a_split_without_any_label_can_be_written_and_read_back() -> None:
    scores, truth = np.random.default_rng(0).standard_normal((6, 3)), np.zeros((6, 3), np.float32)
    found = evaluate(scores, truth, "multi", NAMES[:3])
    with pytest.warns(UserWarning, match="No positive class found"):  # the mean of nothing, says scikit-learn too
        oracle.average_precision_score(truth, scores)
    assert found.macro_f1 is None and found.mean_average_precision is None
    assert found.score == found.accuracy.value == oracle.accuracy_score(truth, scores > 0)
    assert Evaluation.model_validate_json(found.model_dump_json()) == found
    # One label in one row of 60: a third of the resampled ones lack it.
    truth = np.eye(60, 3, dtype=np.float32)[:, :1]
    few = evaluate(2 * truth - 1, truth, "multi", NAMES[:1])
    for estimate in (few.macro_f1, few.mean_average_precision):
        assert (estimate.low, estimate.value, estimate.high) == (1, 1, 1)
    with pytest.raises(ValidationError, match="finite"):
        Estimate(value=float("nan"), low=0, high=1)


def test_a_confusion_of_very_many_classes_is_left_out() -> None:
    scores = np.eye(MAX_CONFUSION + 1)
    found = evaluate(scores, np.arange(len(scores)), "single", tuple(map(str, range(len(scores)))))
    assert found.confusion is None and found.accuracy.value == 1 and len(found.per_class) == len(scores)


def test_near_duplicates_are_joined_through_others() -> None:
    rng = np.random.default_rng(3)
    features = rng.standard_normal((3000, 32)).astype(np.float32)
    angle = np.arccos(0.98)
    first, second = features[0] / np.linalg.norm(features[0]), features[1]
    second = second - (second @ first) * first
    second /= np.linalg.norm(second)
    for place, turns in ((2000, 1), (2999, 2)):  # a chain: the ends are further apart than the limit
        features[place] = 7 * (np.cos(turns * angle) * first + np.sin(turns * angle) * second)
    groups = near_duplicate_groups(features, 0.975)
    assert set(np.flatnonzero(groups == 0)) == {0, 2000, 2999} and len(set(groups.tolist())) == 2998
