"""Ways to get a model, as they were measured: heads on features, and networks that were trained in a trial.

Shape legend: N images of the sample, T of them in a trial.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tlray.advice.inputs.candidates import Candidate
from tlray.advice.inputs.sample import FOLDS, Sample
from tlray.advice.measuring.difference import Difference
from tlray.advice.measuring.race import Racer
from tlray.advice.measuring.trials import Attempt, Trial
from tlray.advice.verdict.commands import head_commands, network_commands
from tlray.advice.verdict.outlook import Outlook
from tlray.config import AdviseConfig
from tlray.training.examples.examples import Split
from tlray.training.examples.metrics import Estimate

Kind = Literal["head", "freeze", "fine-tune", "scratch"]


@dataclass(frozen=True)
class Strategy:
    """A way to get a model, as it was measured.

    Attributes:
        kind: what is trained.
        candidate: the network.
        layer: that the head is on, or up to which all is frozen; the penultimate where nothing is.
        rows: positions of the images that it was measured on, ascending; T.
        right: bool, which of them it tells right; T.
        measured: accuracy, as cross-validation or a trial had it.
        expected: accuracy and interval of what its commands make.
        cost_seconds: of it on all labelled images, on this machine.
        commands: that do it.
    """

    kind: Kind
    candidate: Candidate
    layer: str
    rows: np.ndarray
    right: np.ndarray
    measured: float
    expected: Estimate
    cost_seconds: float
    commands: Sequence[str]

    def less(self, other: "Strategy") -> Difference:
        """How much more of the images that both were measured on it tells right than another one."""
        both, ours, theirs = np.intersect1d(self.rows, other.rows, return_indices=True)
        assert len(both)
        return Difference.of(self.right[ours], other.right[theirs])

    def describe(self) -> dict[str, Any]:
        """The strategy as the result of the command has it."""
        return {
            "strategy": self.kind,
            "candidate": self.candidate.name,
            "layer": self.layer,
            "measured_accuracy": round(self.measured, 4),
            "expected_accuracy": self.expected.rounded(),
            "images_measured": len(self.rows),
            "cost_seconds": round(self.cost_seconds, 1),
            "commands": list(self.commands),
        }


def of_head(racer: Racer, outlook: Outlook, config: AdviseConfig) -> Strategy:
    """A head on the best layer of a candidate, trained as the probes were but on all rows that are not tested on."""
    candidate, sample = racer.candidate, racer.sample
    measured, trained_on = float(racer.right.mean()), len(sample) * (FOLDS - 1) / FOLDS
    growth = _rows_of(sample, Split.TRAIN, Split.VALIDATION) / trained_on
    return Strategy(
        kind="head",
        candidate=candidate,
        layer=racer.best_tap,
        rows=np.arange(len(sample)),
        right=racer.right,
        measured=measured,
        expected=outlook.promise(measured - outlook.optimism, outlook.error, growth),
        cost_seconds=candidate.seconds_per_image * sample.labelled,
        commands=head_commands(config, candidate, racer.best_tap, some_fail=bool(sample.failures)),
    )


def of_trial(
    attempt: Attempt, trial: Trial, head: Strategy, sample: Sample, outlook: Outlook, config: AdviseConfig
) -> Strategy:
    """A network that was trained in a trial.

    Its accuracy on the whole sample is the head's, plus the paired difference on the images that both were measured on: the
    difference of two that err on the same images varies less than either, and the head's own accuracy is known from more
    images. The head's luck of being the best is in both terms, and so in neither.

    Args:
        attempt: what was tried.
        trial: what came of it.
        head: on the same network, measured on all images.
        sample: of labelled images.
        outlook: of the head.
        config: of the advice.
    """
    difference = Difference.of(trial.right, head.right[trial.rows])
    measured = min(1.0, max(0.0, head.measured + difference.mean))
    error = math.hypot(difference.error, outlook.error)
    return Strategy(
        kind=attempt.kind,
        candidate=attempt.candidate,
        layer=attempt.cut or attempt.candidate.tap,
        rows=trial.rows,
        right=trial.right,
        measured=measured,
        expected=outlook.promise(measured, error, _rows_of(sample, Split.TRAIN) / trial.trained_on),
        cost_seconds=trial.seconds * sample.labelled / trial.trained_on,
        commands=network_commands(config, attempt, some_fail=bool(sample.failures)),
    )


def _rows_of(sample: Sample, *splits: Split) -> float:
    """How many of all labelled images the command has in some splits, by their share of the sample."""
    return float(np.isin(sample.examples.splits_N, splits).mean()) * sample.labelled
