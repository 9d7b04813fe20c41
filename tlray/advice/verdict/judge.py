"""The verdict: what is recommended, and how sure that is."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tlray.advice.verdict.strategies import Strategy
from tlray.training.examples.metrics import Z95

CHANCE = 0.001
"""Chance that something is recommended where features say nothing of the labels: over all probes together."""

LEAST_GAIN = 0.01
"""Accuracy that is worth a trial: heads that leave less to win are not challenged."""


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
        strategies: at least one; the first is the best head, as the race has it.
        majority: share of the largest class.
        probes: how many were compared in all.

    Returns:
        `verdict`: `nothing`, `cannot tell` or `recommended`; `reason`; the `recommendation`, None for nothing; `alike`: the
        strategies that are within the error of it; `labels_to_decide`: about how many measured images would tell it from the
        nearest of them.
    """
    head = strategies[0]
    chance = probes * chance_of(round(float(head.right.sum())), len(head.right), majority)
    if chance > CHANCE:
        return {
            "verdict": "nothing",
            "reason": (
                f"no features tell the labels better than always answering the largest class ({majority:.3f}); the best are "
                f"right in {head.measured:.3f}: the labels may be shuffled or wrong, the images may not show "
                "them, or more are needed"
            ),
            "recommendation": None,
            "alike": [],
            "labels_to_decide": None,
        }
    best = _best(strategies)
    others = sorted((one for one in strategies if one is not best), key=lambda one: (-one.expected.value, one.cost_seconds))
    alike = [(one, best.less(one)) for one in others]
    alike = [(one, difference) for one, difference in alike if difference.mean <= Z95 * difference.error]
    cheaper = [one for one, _ in alike if one.cost_seconds < best.cost_seconds]
    needed = None
    if alike:
        nearest, difference = alike[0]
        per_image = difference.error * math.sqrt(len(np.intersect1d(best.rows, nearest.rows)))
        needed = math.ceil((Z95 * per_image / difference.mean) ** 2) if difference.mean else None
    return {
        "verdict": "cannot tell" if alike else "recommended",
        "reason": _reason(best, [one for one, _ in alike], cheaper, needed),
        "recommendation": best.describe(),
        "alike": [one.describe() for one, _ in alike],
        "labels_to_decide": needed,
    }


def _best(strategies: Sequence[Strategy]) -> Strategy:
    """The best head, unless a trained network is better by more than a standard error of the difference.

    One standard error, as Breiman, Friedman, Olshen and Stone (1984) keep the simpler of two trees: a trial is measured on few
    images, so that the best of several is better by luck alone, too; and with few labels heads on fixed features do as well as
    fine-tuning more often than not (Kornblith, Shlens and Le 2019, arXiv 1805.08974).
    """
    head = strategies[0]
    trained = [one for one in strategies if one.kind != "head" and _gain(one, head) > one.less(head).error]
    return max(trained, key=lambda one: one.expected.value, default=head)


def _gain(one: Strategy, head: Strategy) -> float:
    return one.expected.value - head.expected.value


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
