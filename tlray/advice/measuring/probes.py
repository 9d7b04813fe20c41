"""Accuracies by cross-validation: of neighbours' votes and of linear heads, all labels or a few of each class.

The heads are those of `tlray train` with its defaults: a grid of weight decays by conjugate gradients, the best by rows that
are held out of the training rows, then trained again on both.

Shape legend: N images, D length of a vector, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from tlray.advice.inputs.sample import FOLDS, take_examples
from tlray.config import GridConfig, HeadConfig
from tlray.machine.capacity import memory_budget_bytes
from tlray.scoring import nearest_votes, probabilities_of
from tlray.training.examples.examples import Examples, Split
from tlray.training.examples.metrics import Estimate, wilson_of_share
from tlray.training.examples.table_vectors import LoadedVectors
from tlray.training.heads.grid import best_of, train_trials, trained_again, trials_of
from tlray.training.heads.trials import Data, Schedule, scores_of, to_head, unlogged

NEIGHBOURS = 20
CURVE = (5, 20, 100)
"""Labels a class of the learning curve, where they are fewer than half of those that there are."""

HALF = 0.5
"""Share of the labels of the curve's last point but one, by which it is told how errors fall as labels grow."""

Some = Callable[[np.ndarray], np.ndarray]
"""Gives some of the rows that it takes; both ascending."""

_HELD = 0.2
"""Share of each class's training rows that the weight decay is chosen by."""

_SCHEDULE = Schedule(epochs=100, patience=5)


@dataclass(frozen=True)
class Probe:
    """How well features tell the classes, each image judged by what was learned from the other folds.

    Attributes:
        right_N: float64, whether each image is told right; of several cross-validations the share of them.
        likely_NK: probabilities, float32, the mean of several; None of neighbours' votes.
        loss_N: float64, squared distance of the probabilities from the label's, the mean of several: Brier's score (1950,
            Verification of forecasts expressed in terms of probability). It counts how sure an answer is, too, and so tells two
            ways apart on fewer images than what is right and wrong. None of neighbours' votes.
    """

    right_N: np.ndarray
    likely_NK: np.ndarray | None = None
    loss_N: np.ndarray | None = None

    @classmethod
    def of(cls, likely_NK: np.ndarray, targets_N: np.ndarray) -> "Probe":
        """From the probabilities of one cross-validation."""
        label_N = likely_NK[np.arange(len(targets_N)), targets_N].astype(np.float64)
        loss_N = np.square(likely_NK.astype(np.float64)).sum(axis=1) - 2 * label_N + 1
        return cls((likely_NK.argmax(axis=1) == targets_N).astype(np.float64), likely_NK, loss_N)

    @classmethod
    def mean(cls, probes: Sequence["Probe"]) -> "Probe":
        """Of several cross-validations of the same features."""
        right_N, likely_NK, loss_N = (
            np.mean([getattr(one, name) for one in probes], axis=0) for name in ("right_N", "likely_NK", "loss_N")
        )
        return cls(right_N, likely_NK, loss_N)

    @property
    def accuracy(self) -> Estimate:
        """Share of images told right, with Wilson's interval."""
        return wilson_of_share(float(self.right_N.mean()), len(self.right_N))

    @property
    def loss(self) -> float:
        """Mean loss, by which probes are ranked."""
        assert self.loss_N is not None
        return float(self.loss_N.mean())


def neighbour_probe(features_ND: np.ndarray, targets_N: np.ndarray, folds_N: np.ndarray) -> Probe:
    """Judge by the votes of the 20 nearest images of the other folds; by all of these where they are fewer."""
    right_N = np.zeros(len(targets_N))
    for fold in range(FOLDS):
        test, known = np.flatnonzero(folds_N == fold), np.flatnonzero(folds_N != fold)
        if len(test) and len(known):
            k = min(NEIGHBOURS, len(known))
            votes = nearest_votes(features_ND[known], targets_N[known], features_ND[test], k=k)
            right_N[test] = votes == targets_N[test]
    return Probe(right_N)


def linear_probe(
    features_ND: np.ndarray, examples: Examples, folds_N: np.ndarray, *, seed: int, learn_from: Some | None = None
) -> Probe:
    """Judge by a linear head that is trained on the other folds.

    Args:
        features_ND: float32.
        examples: their targets and classes.
        folds_N: of each image.
        seed: of the rows that decays are chosen by.
        learn_from: takes the rows of the other folds, and gives those that are trained on; None for all.
    """
    likely_NK = np.zeros((len(examples), len(examples.classes)), np.float32)
    for fold in range(FOLDS):
        test = np.flatnonzero(folds_N == fold)
        if not len(test):
            continue
        others = np.flatnonzero(folds_N != fold)
        likely_NK[test] = _fold(features_ND, examples, others if learn_from is None else learn_from(others), test, seed)
    return Probe.of(likely_NK, examples.targets)


def learning_curve(
    features_ND: np.ndarray, examples: Examples, folds_N: np.ndarray, whole: Probe, seed: int
) -> list[tuple[int, Probe]]:
    """Probes by labels a class: some, half of those that there are to train on, and all of them.

    Args:
        features_ND: of the images.
        examples: their targets and classes.
        folds_N: of each image.
        whole: the probe of all labels, which the race has made.
        seed: of the labels that are drawn.

    Returns:
        In ascending order; numbers are those of the class of middling size, the last two of half and of all. Half of fewer
        than four labels is left out.
    """
    targets_N = examples.targets
    trained_on = int(np.median(np.bincount(targets_N)) * (FOLDS - 1) / FOLDS)
    draws: list[tuple[int, Some]] = [
        (labels, partial(few_of_each, targets_N, count=labels, seed=seed)) for labels in CURVE if labels < trained_on // 2
    ]
    if trained_on >= 4:
        draws.append((trained_on // 2, partial(held_out, targets_N, share=HALF, seed=seed)))
    found = [(labels, linear_probe(features_ND, examples, folds_N, seed=seed, learn_from=draw)) for labels, draw in draws]
    return [*found, (trained_on, whole)]


def few_of_each(targets_N: np.ndarray, rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """At most `count` of the rows of each class, drawn at random; ascending."""
    shuffled = np.random.default_rng(seed).permutation(rows)
    chosen = [shuffled[targets_N[shuffled] == one][:count] for one in np.unique(targets_N)]
    return np.sort(np.concatenate(chosen))


def held_out(targets_N: np.ndarray, rows: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A share of the rows of each class, at least one where there are two."""
    shuffled = np.random.default_rng(seed).permutation(rows)
    chosen = []
    for one in np.unique(targets_N[rows]):
        of_class = shuffled[targets_N[shuffled] == one]
        chosen.append(of_class[: max(1, round(len(of_class) * share))] if len(of_class) > 1 else of_class[:0])
    return np.sort(np.concatenate(chosen))


def _fold(features_ND: np.ndarray, examples: Examples, train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Train on some rows, and compute probabilities of others; float32, len(test), K."""
    held = held_out(examples.targets, train, _HELD, seed)
    splits_N = np.full(len(examples), Split.TEST, np.uint8)
    splits_N[train], splits_N[held] = Split.TRAIN, Split.VALIDATION
    rows = np.concatenate([train, test])
    some = replace(take_examples(examples, rows), splits_N=splits_N[rows])
    data = Data(LoadedVectors(np.ascontiguousarray(features_ND[rows])), some, torch.ones(len(rows)))
    memory_bytes, head = memory_budget_bytes(), HeadConfig()
    fits = train_trials(data, trials_of("embedding", "cg", GridConfig()), _SCHEDULE, head, memory_bytes, unlogged)
    best = trained_again(best_of(fits), data, _SCHEDULE, head, memory_bytes)
    scores_NK = scores_of(to_head(best, data, dropout=0.0), data)
    return probabilities_of(scores_NK[len(train) :], "single")
