"""What an accuracy as measured says of the accuracy to come: less the luck of the best of many, more as labels grow.

- **Luck.** The best of many probes on the same images is flattered. The accuracy of choosing the best is estimated by a
  bootstrap over images that chooses again in each resample, and judges the chosen one by the images left out of it:
  Tsamardinos, Greasidou and Borboudakis 2018, Bootstrapping the out-of-sample predictions for efficient and accurate
  cross-validation (Machine Learning 107, arXiv 1708.07180), after Tibshirani and Tibshirani 2009, A bias correction for the
  minimum error rate in cross-validation (Annals of Applied Statistics 3). The interval is of the same resamples.
- **Labels.** Cross-validation trains on a part of the images, the command on another number of them. Errors are taken to fall
  as a power of the number of labels (Cortes et al. 1993, Learning curves: asymptotic values and rate of convergence, NIPS 6),
  by the exponent between half of the labels and all. Errors that nothing removes are not known, so the low end of the
  interval counts on no gain.

Shape legend: N images, P probes, B resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tlray.advice.measuring.probes import HALF
from tlray.training.examples.metrics import Estimate, wilson_of_share

RESAMPLES = 400

MOST_GROWTH = 2.0
"""Factor of labels up to which a power is believed; beyond, the gain of so many is promised."""

_LEFT_OUT = math.exp(-1)
"""Share of the images that are in no resample of as many: the spread of what is measured on them is that of so many images."""


@dataclass(frozen=True)
class Outlook:
    """What is known of accuracies beside themselves.

    Attributes:
        optimism: of the best probe's accuracy, by its being the best.
        error: standard error of it, of the choice included.
        exponent: of the number of labels by which errors are divided.
        exponent_error: its standard error.
        rows: images that were measured on.
    """

    optimism: float
    error: float
    exponent: float
    exponent_error: float
    rows: int

    @classmethod
    def of(
        cls,
        right: Sequence[np.ndarray],
        best_N: np.ndarray,
        half_N: np.ndarray | None,
        seed: int,
        loss: Sequence[np.ndarray] | None = None,
    ) -> "Outlook":
        """Learn from resamples of the images how far the best probe's accuracy may be off.

        Args:
            right: of each probe, which images it tells right, or how often, all on the same N images; P of them.
            best_N: that of the chosen one.
            half_N: which the chosen one tells right where it is trained on `HALF` of the labels; None where that is not known.
            seed: of the resamples.
            loss: of each probe, by which the best is chosen; None where it is chosen by what it tells right.
        """
        right_NP = np.stack(right, axis=1).astype(np.float64)
        rows = len(right_NP)
        counts_BN = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES)
        chosen_B = (counts_BN @ (right_NP if loss is None else -np.stack(loss, axis=1))).argmax(axis=1)
        out_BN = (counts_BN == 0).astype(np.float64)
        left_B = out_BN.sum(axis=1)
        accuracy_B = (out_BN @ right_NP)[np.arange(RESAMPLES), chosen_B] / left_B
        optimism = max(0.0, float(best_N.mean() - accuracy_B.mean())) if len(right) > 1 else 0.0
        error = float(accuracy_B.std()) * math.sqrt(_LEFT_OUT)
        if half_N is None:
            return cls(optimism, error, 0.0, 0.0, rows)
        wrong_half_N, wrong_N = 1.0 - half_N, 1.0 - best_N
        exponent = float(_exponent(wrong_half_N.sum(), wrong_N.sum()))
        spread = float(_exponent(out_BN @ wrong_half_N, out_BN @ wrong_N).std()) * math.sqrt(_LEFT_OUT)
        return cls(optimism, error, exponent, spread, rows)

    def promise(self, accuracy: float, error: float, growth: float) -> Estimate:
        """The accuracy to expect, and its interval of 95 %.

        Args:
            accuracy: as measured, without its optimism.
            error: standard error of it.
            growth: labels that the command trains on, as a multiple of those that were trained on.
        """
        factor = min(growth, MOST_GROWTH)
        wrong = (1 - accuracy) * factor**-self.exponent
        value = 1 - wrong
        grown_error = math.hypot(error, wrong * math.log(factor) * self.exponent_error)
        low, high = sorted((accuracy, value))
        return Estimate(value=value, low=self._ends(low, error).low, high=self._ends(high, grown_error).high)

    def _ends(self, share: float, error: float) -> Estimate:
        """Wilson's interval of as many images as would have this error; at most those that there are."""
        rows = min(self.rows, share * (1 - share) / error**2) if error > 0 else self.rows
        return wilson_of_share(min(1.0, max(0.0, share)), max(rows, 1.0))

    def describe(self) -> dict[str, float]:
        """The outlook as the result of the command has it."""
        return {name: round(getattr(self, name), 4) for name in ("optimism", "error", "exponent", "exponent_error")}


def _exponent(wrong_half: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """By which power of the labels errors fell; from 0 to 1, that of errors which only a lack of labels causes."""
    exponent: np.ndarray = np.clip(np.log((wrong_half + 0.5) / (wrong + 0.5)) / math.log(1 / HALF), 0, 1)
    return exponent
