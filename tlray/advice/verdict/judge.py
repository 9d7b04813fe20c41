"""The verdict: what is recommended, how sure that is, and where the task lies on the map of four scenarios.

Shape legend: N images of the sample, T of them in a trial.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tlray.advice.inputs.candidates import Candidate
from tlray.advice.measuring.race import Z95, Difference
from tlray.training.examples.metrics import Estimate

LITTLE = 100
"""Labels a class under which data are called little: a rule of thumb, as the textbooks' map gives no number. Kornblith, Shlens
and Le 2019 (Do Better ImageNet Models Transfer Better?, arXiv 1805.08974) see fine-tuning gain on fixed features as labels a
class grow from a few to hundreds."""

LIKE = 0.5
"""Share of the errors of a linear probe on raw pixels that one on pretrained features avoids, from which on a task is called
like the pretraining's; likewise."""

CHANCE = 0.001
"""Chance that something is recommended where features say nothing of the labels: over all probes together."""

LEAST_GAIN = 0.01
"""Accuracy that is worth a trial: heads that leave less to win are not challenged."""

SCENARIOS = {
    ("little", "like"): "little data, like the pretraining's: train a head on the last features",
    ("little", "unlike"): "little data, unlike the pretraining's: train a head on earlier features, or freeze the first layers",
    ("much", "like"): "much data, like the pretraining's: fine-tune, with small rates",
    ("much", "unlike"): "much data, unlike the pretraining's: fine-tune all of it; training from scratch may do as well",
}
"""The map of the CS231n notes on transfer learning (cs231n.github.io/transfer-learning), which has these four corners."""

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
        expected: accuracy and interval.
        cost_seconds: of it on all labelled images, on this machine.
        commands: that do it.
    """

    kind: Kind
    candidate: Candidate
    layer: str
    rows: np.ndarray
    right: np.ndarray
    expected: Estimate
    cost_seconds: float
    commands: Sequence[str]

    def less(self, other: "Strategy") -> Difference:
        """How much more of the images that both were measured on it tells right than another one."""
        both, ours, theirs = np.intersect1d(self.rows, other.rows, return_indices=True)
        assert len(both)
        return Difference.of(self.right[ours], other.right[theirs])

    def describe(self) -> dict[str, Any]:
        """As the result has it."""
        return {
            "strategy": self.kind,
            "candidate": self.candidate.name,
            "layer": self.layer,
            "expected_accuracy": rounded(self.expected),
            "images_measured": len(self.rows),
            "cost_seconds": round(self.cost_seconds, 1),
            "commands": list(self.commands),
        }


def rounded(estimate: Estimate) -> dict[str, float]:
    """An estimate as the result has it."""
    return {name: round(value, 4) for name, value in estimate.model_dump().items()}


def expected_of_trial(head: Strategy, rows: np.ndarray, right: np.ndarray) -> Estimate:
    """Accuracy of a trial on the whole sample: the head's, plus the paired difference on the images that both were measured on.

    The difference of two that err on the same images varies less than either; the head's own accuracy is known from more
    images.

    Args:
        head: on the same network, measured on all images.
        rows: of the trial, ascending.
        right: which of them it tells right.
    """
    _, ours, theirs = np.intersect1d(rows, head.rows, return_indices=True)
    difference = Difference.of(right[ours], head.right[theirs])
    value = head.expected.value + difference.mean
    own = (head.expected.high - head.expected.low) / (2 * Z95)
    half = Z95 * math.hypot(difference.error, own)
    value = min(1.0, max(0.0, value))
    return Estimate(value=value, low=max(0.0, value - half), high=min(1.0, max(value, value + half)))


def chance_of(right: int, rows: int, share: float) -> float:
    """Chance of so many right answers or more where each is right with the majority's share; the binomial's upper tail."""
    if share >= 1 or right <= 0:
        return 1.0
    log_p, log_q = math.log(share), math.log1p(-share)
    terms = [
        math.lgamma(rows + 1) - math.lgamma(k + 1) - math.lgamma(rows - k + 1) + k * log_p + (rows - k) * log_q
        for k in range(right, rows + 1)
    ]
    return min(1.0, math.fsum(math.exp(term) for term in terms))


def judge(strategies: Sequence[Strategy], majority: float, probes: int) -> dict[str, Any]:
    """Choose among strategies, and say how sure that is.

    Args:
        strategies: at least one; the first is the best head.
        majority: share of the largest class.
        probes: how many were compared in all.

    Returns:
        `verdict`: `nothing`, `cannot tell` or `recommended`; `reason`; the `recommendation`, None for nothing; `alike`: the
        strategies that are within the error of it; `labels_to_decide`: about how many measured images would tell it from the
        nearest of them.
    """
    head = strategies[0]
    chance = probes * chance_of(int(head.right.sum()), len(head.right), majority)
    if chance > CHANCE:
        return {
            "verdict": "nothing",
            "reason": (
                f"no features tell the labels better than always answering the largest class ({majority:.3f}); the best are "
                f"right in {head.expected.value:.3f}: the labels may be shuffled or wrong, the images may not show "
                "them, or more are needed"
            ),
            "recommendation": None,
            "alike": [],
            "labels_to_decide": None,
        }
    ordered = sorted(strategies, key=lambda one: (-one.expected.value, one.cost_seconds))
    best, others = ordered[0], ordered[1:]
    alike = [(one, best.less(one)) for one in others]
    alike = [(one, difference) for one, difference in alike if abs(difference.mean) <= Z95 * difference.error]
    cheaper = [one for one, _ in alike if one.cost_seconds < best.cost_seconds]
    needed = None
    if alike:
        nearest, difference = alike[0]
        per_image = difference.error * math.sqrt(len(np.intersect1d(best.rows, nearest.rows)))
        needed = math.ceil((Z95 * per_image / difference.mean) ** 2) if difference.mean > 0 else None
    return {
        "verdict": "cannot tell" if alike else "recommended",
        "reason": _reason(best, [one for one, _ in alike], cheaper, needed),
        "recommendation": best.describe(),
        "alike": [one.describe() for one, _ in alike],
        "labels_to_decide": needed,
    }


def _reason(best: Strategy, alike: Sequence[Strategy], cheaper: Sequence[Strategy], needed: int | None) -> str:
    if not alike:
        return f"{_words(best)} is better than all else that was tried, by more than the error"
    text = f"cannot tell {_words(best)} from {_words(alike[0])}"
    text += f" and {len(alike) - 1} more" if len(alike) > 1 else ""
    text += ": they are within the error"
    text += f"; about {needed:,} labelled images to measure on would decide" if needed else "; they are equal as measured"
    if cheaper:
        least = min(cheaper, key=lambda one: one.cost_seconds)
        text += f"; {_words(least)} is the cheapest of them"
    return text


def _words(one: Strategy) -> str:
    what = {
        "head": f"a head on {one.layer}",
        "freeze": f"training all after {one.layer}",
        "fine-tune": "fine-tuning all",
        "scratch": "training from scratch",
    }[one.kind]
    return f"{what} of {one.candidate.name}"


def scenario_of(labels_per_class: float, likeness: float | None) -> dict[str, Any]:
    """Place a task on the map of four scenarios.

    Args:
        labels_per_class: of the class of middling size.
        likeness: see `LIKE`; None where no pretrained network was tried.
    """
    amount = "little" if labels_per_class < LITTLE else "much"
    kind = None if likeness is None else "like" if likeness >= LIKE else "unlike"
    return {
        "labels_per_class": labels_per_class,
        "likeness": None if likeness is None else round(likeness, 4),
        "corner": None if kind is None else f"{amount}, {kind}",
        "map_says": None if kind is None else SCENARIOS[amount, kind],
    }
