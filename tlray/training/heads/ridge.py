"""Ridge regression in closed form, as an exact map-reduce over parts of a table, and all its penalties at once.

Shape legend: B rows, D length of a vector, K outputs, G penalties.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tlray.training.examples.examples import Split
from tlray.training.examples.table_vectors import BLOCK_ROWS
from tlray.training.heads.objective import Objective
from tlray.training.heads.trials import Data, Fit, Trial

TEMPERATURES = np.geomspace(0.5, 64, 57)
"""Factors on the scores of least squares that are tried where they are to be logits; each is 9 % larger than the last."""


@dataclass(frozen=True)
class Moments:
    """What a least squares fit needs of rows: their weighted count, means and centred second moments, in float64.

    Attributes:
        count: sum of weights.
        mean_D: of the vectors.
        mean_K: of the targets.
        xx_DD: sum of weight * (x - mean)(x - mean)'.
        xy_DK: sum of weight * (x - mean)(y - mean)'.
    """

    count: float
    mean_D: np.ndarray
    mean_K: np.ndarray
    xx_DD: np.ndarray
    xy_DK: np.ndarray

    @classmethod
    def of(cls, features_BD: np.ndarray, targets_BK: np.ndarray, weights_B: np.ndarray) -> "Moments":
        """Compute the moments of some rows: the map step."""
        x_BD, y_BK, w_B1 = features_BD.astype(np.float64), targets_BK.astype(np.float64), weights_B.astype(np.float64)[:, None]
        count = float(w_B1.sum())
        mean_D, mean_K = (w_B1 * x_BD).sum(axis=0) / count, (w_B1 * y_BK).sum(axis=0) / count
        x_BD -= mean_D
        weighted_BD = w_B1 * x_BD
        return cls(count, mean_D, mean_K, weighted_BD.T @ x_BD, weighted_BD.T @ (y_BK - mean_K))

    def merge(self, other: "Moments") -> "Moments":
        """Join the moments of two sets of rows: the reduce step (Chan, Golub and LeVeque 1979, for covariances)."""
        count = self.count + other.count
        x_D, y_K = other.mean_D - self.mean_D, other.mean_K - self.mean_K
        share, between = other.count / count, self.count * other.count / count
        return Moments(
            count,
            self.mean_D + x_D * share,
            self.mean_K + y_K * share,
            self.xx_DD + other.xx_DD + between * np.outer(x_D, x_D),
            self.xy_DK + other.xy_DK + between * np.outer(x_D, y_K),
        )

    def solve(self, penalties: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Minimise mean squared error / 2 + penalty / 2 * |W|^2, intercepts free, for each penalty.

        One eigendecomposition serves all: (V S V' + penalty I)^-1 = V (S + penalty)^-1 V'. Directions without variance get no
        weight, as in the limit of a small penalty.

        Returns:
            weights_GDK and bias_GK, float64.
        """
        variance_D, axes_DD = np.linalg.eigh(self.xx_DD / self.count)
        projected_DK = axes_DD.T @ (self.xy_DK / self.count)
        known_D = variance_D > np.finfo(np.float64).eps * len(variance_D) * max(variance_D[-1], 0)
        inverse_GD = np.where(known_D, 1 / (np.where(known_D, variance_D, 1) + np.asarray(penalties)[:, None]), 0)
        weights_GDK = axes_DD @ (inverse_GD[:, :, None] * projected_DK)
        return weights_GDK, self.mean_K - self.mean_D @ weights_GDK


def moments_of(data: Data, *splits: Split) -> Moments:
    """Sum up the moments of standardised vectors block by block; targets are one-hot, those of a regression standardised."""
    outputs = len(data.examples.classes)
    total: Moments | None = None
    for positions_B, features_BD in data.blocks(*splits):
        targets = data.targets[positions_B].numpy()
        targets_BK = np.eye(outputs)[targets] if data.examples.task == "single" else targets
        part = Moments.of(features_BD.numpy(), targets_BK, data.weights[positions_B].numpy())
        total = part if total is None else total.merge(part)
    assert total is not None
    return total


def train_ridge(data: Data, trials: Sequence[Trial], factors: Sequence[float] | None = None) -> list[Fit]:
    """Fit ridge regressions for all penalties of a grid at once.

    Scores of least squares are near 0 and 1; for classes they are centred and scaled to be logits, by the factor of
    `TEMPERATURES` with the least validation loss (temperature scaling, Guo et al. 2017, arXiv 1706.04599).

    Args:
        data: in memory or streamed; read once, and the validation rows once more.
        trials: of solver `ridge`.
        factors: those of an earlier fit; given, the validation rows are trained on too.
    """
    splits = (Split.TRAIN, Split.VALIDATION) if factors else (Split.TRAIN,)
    weights_GDK, bias_GK = moments_of(data, *splits).solve([trial.weight_decay for trial in trials])
    shift = 0.5 if data.examples.task == "multi" else 0.0  # where a label is as likely as not
    if factors is not None:
        fitted = zip(trials, weights_GDK, bias_GK, factors, strict=True)
        return [Fit(trial, (_layer(w_DK, b_K, factor, shift),), 1, (), factor) for trial, w_DK, b_K, factor in fitted]
    best, losses_G = _tempered(data, weights_GDK, bias_GK, shift)
    return [
        Fit(trial, (_layer(weights_DK, bias_K, factor, shift),), 1, (loss,), factor)
        for trial, weights_DK, bias_K, factor, loss in zip(trials, weights_GDK, bias_GK, best, losses_G, strict=True)
    ]


def _tempered(data: Data, weights_GDK: np.ndarray, bias_GK: np.ndarray, shift: float) -> tuple[list[float], list[float]]:
    """Factor and validation loss of each head: one number is fitted on the first random block, the loss is of all rows."""
    tried = np.ones(1) if data.examples.task == "regression" else TEMPERATURES
    factors: list[float] = []
    losses_G, rows = np.zeros(len(weights_GDK)), 0
    wanted_N = data.wanted(Split.VALIDATION)
    for positions_B, features_BD in data.vectors.batches(wanted_N, BLOCK_ROWS, np.random.default_rng(0)):
        targets = data.targets[positions_B]
        judge = Objective(targets, torch.ones(len(positions_B)), data.examples.task)
        x_BD = data.standardised(features_BD).numpy().astype(np.float64)
        fitted = zip(weights_GDK, bias_GK, strict=True)
        scores = [_tensor((x_BD @ weights_DK + bias_K - shift).T)[None] for weights_DK, bias_K in fitted]
        if not factors:
            factors = [float(tried[np.argmin([judge.losses(factor * one) for factor in tried])]) for one in scores]
        now_G = [float(judge.losses(factor * one)) for factor, one in zip(factors, scores, strict=True)]
        losses_G += len(positions_B) * np.array(now_G)
        rows += len(positions_B)
    return factors, (losses_G / rows).tolist()


def _layer(weights_DK: np.ndarray, bias_K: np.ndarray, factor: float, shift: float) -> tuple[Tensor, Tensor]:
    return _tensor(factor * weights_DK.T), _tensor(factor * (bias_K - shift))


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
