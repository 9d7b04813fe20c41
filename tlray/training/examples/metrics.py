"""How good predictions are: arrays in, an `Evaluation` out.

Shape legend: N rows, K outputs.
"""

from collections.abc import Callable

import numpy as np
from pydantic import BaseModel, ConfigDict

from tlray.predictor import Task
from tlray.scoring import probabilities_of

ECE_BINS = 15
TOP = 5
THRESHOLD = 0.5
MAX_CONFUSION = 200
"""Classes; a matrix of more is nothing that one reads."""

RESAMPLES = 200
"""Resamples of a bootstrap: a percentile interval of 95 % rests on the five lowest and highest."""

MAX_RESAMPLED = 200_000
"""Rows; of more, an interval is narrower than anything that matters, and takes minutes."""

Z95 = 1.959964
"""The normal distribution's 97.5 % quantile."""


class _Strict(BaseModel):
    # JSON has no NaN: it would be written as null, which cannot be read back.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Estimate(_Strict):
    """A number and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def rounded(self) -> dict[str, float]:
        """The estimate as results have it, with four digits."""
        return {name: round(value, 4) for name, value in self.model_dump().items()}


class OutputRow(_Strict):
    """One class or one output; what does not apply to the task is None."""

    name: str
    rows: int
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    average_precision: float | None = None
    mean_absolute_error: float | None = None
    r2: float | None = None


class Evaluation(_Strict):
    """What was measured on one split; what does not apply to the task is None.

    Attributes:
        rows: N.
        loss: mean cross-entropy (single), binary cross-entropy (multi) or squared error (regression).
        accuracy: share of rows whose first class is right (single) or whose classes all are (multi), with Wilson's interval.
        top5: share of rows whose class is among the first five; where there are more than five classes.
        macro_f1: mean F1 of the classes that have a row, with a bootstrap interval; None where none has.
        mean_average_precision: of multi, over the classes that have a row; None where none has.
        ece: expected calibration error (Guo et al. 2017, arXiv 1706.04599), 15 bins of equal width.
        mean_squared_error: of a regression.
        r2: mean coefficient of determination of the outputs.
        per_class: one row an output.
        confusion: rows are true classes, columns predicted ones; where there are at most `MAX_CONFUSION` classes.
    """

    rows: int
    loss: float
    accuracy: Estimate | None = None
    top5: Estimate | None = None
    macro_f1: Estimate | None = None
    mean_average_precision: Estimate | None = None
    ece: float | None = None
    mean_squared_error: Estimate | None = None
    r2: Estimate | None = None
    per_class: tuple[OutputRow, ...] = ()
    confusion: tuple[tuple[int, ...], ...] | None = None

    @property
    def score(self) -> float:
        """What models are compared by, larger is better: accuracy, mean average precision or R2."""
        for estimate in (self.r2, self.mean_average_precision, self.accuracy):
            if estimate is not None:
                return estimate.value
        return -self.loss


def evaluate(scores_NK: np.ndarray, targets: np.ndarray, task: Task, classes: tuple[str, ...]) -> Evaluation:
    """Measure the predictions for one split against its targets.

    Args:
        scores_NK: a head's output: logits, or values.
        targets: as `Examples.targets`.
        task: what they are.
        classes: names of the K outputs.
    """
    scores_NK = scores_NK.astype(np.float64)
    return {"single": _single, "multi": _multi, "regression": _regression}[task](scores_NK, targets, classes)


def wilson(right: int, rows: int) -> Estimate:
    """A share and its 95 % interval by Wilson's score (Wilson 1927), which holds for few rows and near 0 and 1."""
    return wilson_of_share(right / rows, rows)


def wilson_of_share(share: float, rows: float) -> Estimate:
    """The interval of `wilson` for a share of so many rows; they may be a number of rows in effect, which is no whole one."""
    middle = (share + Z95**2 / (2 * rows)) / (1 + Z95**2 / rows)
    half = Z95 / (1 + Z95**2 / rows) * np.sqrt(share * (1 - share) / rows + Z95**2 / (4 * rows**2))
    return Estimate(value=share, low=float(min(share, middle - half)), high=float(max(share, middle + half)))


def _bootstrap(statistic: Callable[[np.ndarray], float], rows: int) -> Estimate | None:
    """A statistic of all rows and its 95 % percentile interval over resampled rows (Efron 1979); seeded.

    It may be NaN where rows do not define it: such samples are left out, and of all rows that is None.
    """
    value = statistic(np.arange(rows))
    if np.isnan(value):
        return None
    generator = np.random.default_rng(0)
    samples = [statistic(generator.integers(rows, size=rows)) for _ in range(RESAMPLES if rows <= MAX_RESAMPLED else 0)]
    known = [sample for sample in samples if not np.isnan(sample)]
    low, high = np.percentile(known, [2.5, 97.5]) if known else (value, value)
    return Estimate(value=value, low=float(min(low, value)), high=float(max(high, value)))


def _single(scores_NK: np.ndarray, targets: np.ndarray, classes: tuple[str, ...]) -> Evaluation:
    rows, outputs = scores_NK.shape
    at_N = np.arange(rows)
    predicted_N = scores_NK.argmax(axis=1)
    shifted_NK = scores_NK - scores_NK.max(axis=1, keepdims=True)
    log_likelihood_N = shifted_NK[at_N, targets] - np.log(np.exp(shifted_NK).sum(axis=1))
    # Rank by how many scores are larger; ties count against it.
    rank_N = (scores_NK >= scores_NK[at_N, targets][:, None]).sum(axis=1)
    confusion = np.bincount(targets * outputs + predicted_N, minlength=outputs**2).reshape(outputs, outputs)
    precision_K, recall_K, f1_K = _rates(confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1))

    def macro_f1(chosen: np.ndarray) -> float:
        truth, guess = targets[chosen], predicted_N[chosen]
        actual_K = np.bincount(truth, minlength=outputs)
        f1 = _rates(np.bincount(truth[truth == guess], minlength=outputs), np.bincount(guess, minlength=outputs), actual_K)[2]
        return float(f1[actual_K > 0].mean())

    likely_NK = probabilities_of(scores_NK, "single")
    return Evaluation(
        rows=rows,
        loss=-float(log_likelihood_N.mean()),
        accuracy=wilson(int((predicted_N == targets).sum()), rows),
        top5=wilson(int((rank_N <= TOP).sum()), rows) if outputs > TOP else None,
        macro_f1=_bootstrap(macro_f1, rows),
        ece=calibration_error(likely_NK.max(axis=1), predicted_N == targets),
        per_class=tuple(
            OutputRow(name=name, rows=int(confusion[at].sum()), precision=precision_K[at], recall=recall_K[at], f1=f1_K[at])
            for at, name in enumerate(classes)
        ),
        confusion=tuple(tuple(row) for row in confusion.tolist()) if outputs <= MAX_CONFUSION else None,
    )


def _multi(scores_NK: np.ndarray, targets: np.ndarray, classes: tuple[str, ...]) -> Evaluation:
    rows = len(scores_NK)
    truth_NK, guess_NK = targets > THRESHOLD, scores_NK > 0
    hits_NK = truth_NK & guess_NK
    precision_K, recall_K, f1_K = _rates(hits_NK.sum(axis=0), guess_NK.sum(axis=0), truth_NK.sum(axis=0))
    average_K = [average_precision(scores_NK[:, at], truth_NK[:, at]) for at in range(len(classes))]

    def macro_f1(chosen: np.ndarray) -> float:
        actual_K = truth_NK[chosen].sum(axis=0)
        f1 = _rates(hits_NK[chosen].sum(axis=0), guess_NK[chosen].sum(axis=0), actual_K)[2]
        return float(f1[actual_K > 0].mean()) if (actual_K > 0).any() else float("nan")

    def mean_average_precision(chosen: np.ndarray) -> float:
        values = [average_precision(scores_NK[chosen, at], truth_NK[chosen, at]) for at in range(len(classes))]
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else float("nan")

    likely_NK = probabilities_of(scores_NK, "multi")
    sure_NK = np.where(guess_NK, likely_NK, 1 - likely_NK)
    return Evaluation(
        rows=rows,
        loss=float((np.logaddexp(0, scores_NK) - truth_NK * scores_NK).mean()),
        accuracy=wilson(int((truth_NK == guess_NK).all(axis=1).sum()), rows),
        macro_f1=_bootstrap(macro_f1, rows),
        mean_average_precision=_bootstrap(mean_average_precision, rows),
        ece=calibration_error(sure_NK.reshape(-1), (truth_NK == guess_NK).reshape(-1)),
        per_class=tuple(
            OutputRow(
                name=name,
                rows=int(truth_NK[:, at].sum()),
                precision=precision_K[at],
                recall=recall_K[at],
                f1=f1_K[at],
                average_precision=average_K[at],
            )
            for at, name in enumerate(classes)
        ),
    )


def _regression(scores_NK: np.ndarray, targets: np.ndarray, classes: tuple[str, ...]) -> Evaluation:
    rows = len(scores_NK)
    errors_NK, targets_NK = scores_NK - targets, targets.astype(np.float64)

    def r2_of(chosen: np.ndarray) -> np.ndarray:
        around_NK = targets_NK[chosen] - targets_NK[chosen].mean(axis=0)
        total_K = (around_NK**2).sum(axis=0)
        left_K = (errors_NK[chosen] ** 2).sum(axis=0)
        return np.where(total_K > 0, 1 - left_K / np.where(total_K > 0, total_K, 1), 0.0)

    r2_K = r2_of(np.arange(rows))
    return Evaluation(
        rows=rows,
        loss=float((errors_NK**2).mean()),
        mean_squared_error=_bootstrap(lambda chosen: float((errors_NK[chosen] ** 2).mean()), rows),
        r2=_bootstrap(lambda chosen: float(r2_of(chosen).mean()), rows),
        per_class=tuple(
            OutputRow(name=name, rows=rows, mean_absolute_error=float(np.abs(errors_NK[:, at]).mean()), r2=float(r2_K[at]))
            for at, name in enumerate(classes)
        ),
    )


def _rates(hits_K: np.ndarray, guessed_K: np.ndarray, actual_K: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1; 0 where there is nothing to divide by, as scikit-learn has it."""
    return (
        hits_K / np.maximum(guessed_K, 1),
        hits_K / np.maximum(actual_K, 1),
        2 * hits_K / np.maximum(guessed_K + actual_K, 1),
    )


def calibration_error(sure_N: np.ndarray, right_N: np.ndarray) -> float:
    """Mean distance of confidence and accuracy over `ECE_BINS` bins of equal width, weighted by rows (Guo et al. 2017)."""
    bins_N = np.minimum((sure_N * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    gaps = np.bincount(bins_N, sure_N, ECE_BINS) - np.bincount(bins_N, right_N.astype(np.float64), ECE_BINS)
    return float(np.abs(gaps).sum() / len(sure_N))


def average_precision(scores_N: np.ndarray, truth_N: np.ndarray) -> float | None:
    """Sum over thresholds of precision times gained recall, no interpolation; None where nothing is true."""
    total = int(truth_N.sum())
    if not total:
        return None
    order = np.argsort(-scores_N, kind="stable")
    hits = np.cumsum(truth_N[order])
    # Equal scores are one threshold: only the last of them counts.
    ends = np.flatnonzero(np.append(np.diff(scores_N[order]) != 0, True))
    gained = np.diff(hits[ends], prepend=0)
    return float((gained * hits[ends] / (ends + 1)).sum() / total)
