"""Many linear heads at once by preconditioned nonlinear conjugate gradients on all rows: no learning rate, no batches.

All heads share the vectors: an iteration is two products with all of them, `directions_(G K),R @ rows_NR.T` and its transpose.
What makes it short is the basis: in that of the principal components the Hessian of every head is nearly diagonal, (mean
second derivative by the scores) x (variance of the component) + weight decay, and at zero weights exactly so for equal
classes; its inverse is the preconditioner, so that the first step is nearly Newton's. A rotation does not change |W|, so the
solution is that of the original problem. Directions follow Polak and Ribiere (with restarts: Nocedal and Wright, Numerical
Optimization, 2nd ed., section 5.2); the step is Newton's along the direction, which needs no further product as scores are
linear in the weights, and is halved where it went too far.

Shape legend: N rows, M validation rows, D length of a vector, R principal components, G heads, K outputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tlray.training.examples.examples import Split
from tlray.training.heads.objective import Objective, product
from tlray.training.heads.trials import Data, Fit, Log, Race, Schedule, Trial

MAX_COMPONENTS = 4096
"""The largest number of dimensions or rows, whichever are fewer: the time for their eigenvectors grows with the cube; beyond,
`auto` takes adamw."""

_LEAST_VARIANCE = 1e-4
"""Components below this share of the largest variance are left out: they cost time and no head was better
for them."""

_LEAST_CURVATURE = 1e-6
_HALVINGS = 6
_SCORE_COPIES = 9
_VECTOR_COPIES = 6
"""Arrays as large as the scores or the vectors that are alive at once."""


@dataclass(frozen=True)
class Basis:
    """Principal components of the training rows, and as the last of the R a constant 1, whose weight is the bias.

    Attributes:
        axes_RD: orthonormal rows; that of the constant is 0.
        variance_R: along each; second moment of the constant.
        rows_NR: the training rows in it.
    """

    axes_RD: Tensor
    variance_R: Tensor
    rows_NR: Tensor

    @classmethod
    def of(cls, features_ND: Tensor) -> "Basis":
        """Find the principal components of standardised vectors, by the smaller of the two Gram matrices."""
        count, dimensions = features_ND.shape
        features_DN = features_ND.T.contiguous()
        if dimensions <= count:
            variance, axes = torch.linalg.eigh(product(features_DN, features_DN) / count)
        else:
            variance, vectors_NN = torch.linalg.eigh(product(features_ND, features_ND) / count)
            axes = product(features_DN, (vectors_NN / (count * variance.clamp_min(1e-30)).sqrt()).T)
        kept = variance > _LEAST_VARIANCE * variance[-1].clamp_min(1e-30)
        axes_RD = torch.cat([axes.T[kept], torch.zeros(1, dimensions)])
        return cls(axes_RD, torch.cat([variance[kept], torch.ones(1)]), _in_basis(features_ND, axes_RD))

    def rows(self, features_MD: Tensor) -> Tensor:
        """Other standardised vectors in it; MR."""
        return _in_basis(features_MD, self.axes_RD)


def _in_basis(features_MD: Tensor, axes_RD: Tensor) -> Tensor:
    rows_MR = product(features_MD, axes_RD)
    rows_MR[:, -1] = 1
    return rows_MR


def heads_at_once(data: Data, memory_bytes: int) -> int:
    """How many heads memory allows for; 0 where not even the vectors fit."""
    rows, outputs = len(data.examples), len(data.examples.classes)
    left_bytes = memory_bytes - _VECTOR_COPIES * 4 * rows * data.vectors.dimensions
    return max(0, left_bytes // (4 * outputs * (_SCORE_COPIES * rows + 6 * data.vectors.dimensions)))


def conjugate_gradients(data: Data, trials: Sequence[Trial], schedule: Schedule, at_once: int, log: Log) -> list[Fit]:
    """Train many linear heads at once by conjugate gradients.

    Args:
        data: whose vectors fit in memory.
        trials: of solver `cg`.
        schedule: an epoch is an iteration.
        at_once: heads that are trained together.
        log: is told of each iteration.
    """
    splits = (Split.TRAIN, Split.VALIDATION) if schedule.refit else (Split.TRAIN,)
    positions, features_ND = data.matrix(*splits)
    basis = Basis.of(features_ND)
    objective = Objective(data.targets[positions], data.weights[positions], data.examples.task)
    positions, features_MD = data.matrix(Split.VALIDATION)
    rows_MR = basis.rows(features_MD)
    judge = Objective(data.targets[positions], torch.ones(len(positions)), data.examples.task)
    fits = []
    for start in range(0, len(trials), at_once):
        some = trials[start : start + at_once]
        descent = _Descent(basis, objective, some, len(data.examples.classes))
        fits += _run(descent, some, schedule, judge.losses, rows_MR, log)
    return fits


class _Descent:
    """The state of the heads that are still being trained; g counts these."""

    def __init__(self, basis: Basis, objective: Objective, trials: Sequence[Trial], outputs: int) -> None:
        heads, (count, components) = len(trials), basis.rows_NR.shape
        self._basis, self._objective = basis, objective
        self._decay_G1R = torch.tensor([trial.weight_decay for trial in trials])[:, None, None].repeat(1, 1, components)
        self._decay_G1R[:, :, -1] = 0  # none on the bias
        self.weights_GKR = torch.zeros(heads, outputs, components)
        self._scores_GKN = torch.zeros(heads, outputs, count)
        self._losses_G = objective.losses(self._scores_GKN)
        self._penalty_G = torch.zeros(heads)
        # With these the first direction is the preconditioned gradient alone.
        self._direction_GKR, self._gradient_GKR = torch.zeros_like(self.weights_GKR), torch.zeros_like(self.weights_GKR)
        self._norm_G = torch.ones(heads)

    def scores(self, rows_MR: Tensor) -> Tensor:
        """Compute the scores of all heads for other rows, GKM."""
        return _times(self.weights_GKR, rows_MR)

    def step(self) -> None:
        """Go one iteration on with all heads."""
        residuals_GKN, second_GKN = self._objective.expand(self._scores_GKN)
        gradient_GKR = _times(residuals_GKN, self._basis.rows_NR.T).addcmul_(self._decay_G1R, self.weights_GKR)
        diagonal_GK1 = self._objective.diagonal(second_GKN).clamp_min(_LEAST_CURVATURE)[:, :, None]
        newton_GKR = gradient_GKR / (self._basis.variance_R * diagonal_GK1 + self._decay_G1R)
        norm_G = _dot(newton_GKR, gradient_GKR)
        momentum_G = ((norm_G - _dot(newton_GKR, self._gradient_GKR)) / self._norm_G).clamp_min(0)
        descent_G = norm_G - momentum_G * _dot(self._direction_GKR, gradient_GKR)
        uphill_G = ~(descent_G > 0)
        momentum_G, descent_G = momentum_G.masked_fill(uphill_G, 0), torch.where(uphill_G, norm_G, descent_G)
        self._direction_GKR = self._direction_GKR.mul_(momentum_G[:, None, None]).sub_(newton_GKR)
        self._gradient_GKR, self._norm_G = gradient_GKR, norm_G.clamp_min(1e-30)
        self._move(descent_G, second_GKN)

    def _move(self, descent_G: Tensor, second_GKN: Tensor) -> None:
        """Go Newton's step along the direction, or a half, a quarter... of it where the loss would rise."""
        along_GKN = _times(self._direction_GKR, self._basis.rows_NR)
        decayed_GKR = self._decay_G1R * self._direction_GKR
        slope_G, square_G = _dot(decayed_GKR, self.weights_GKR), _dot(decayed_GKR, self._direction_GKR)
        curvature_G = self._objective.curvature(second_GKN, along_GKN) + square_G
        step_G = descent_G / curvature_G.clamp_min(1e-30)
        for halving in range(_HALVINGS + 1):
            scores_GKN = torch.addcmul(self._scores_GKN, step_G[:, None, None], along_GKN)
            penalty_G = self._penalty_G + step_G * slope_G + step_G**2 / 2 * square_G
            losses_G = self._objective.losses(scores_GKN) + penalty_G
            rose_G = ~(losses_G <= self._losses_G)
            if not rose_G.any():
                break
            # What cannot fall any more is where it ends: stay.
            step_G = torch.where(rose_G, step_G / 2 if halving < _HALVINGS - 1 else torch.zeros(()), step_G)
        self._scores_GKN, self._losses_G, self._penalty_G = scores_GKN, losses_G, penalty_G
        self.weights_GKR.addcmul_(step_G[:, None, None], self._direction_GKR)

    def keep(self, kept_G: Tensor) -> None:
        """Go on with some of the heads."""
        self._direction_GKR, self._gradient_GKR = self._direction_GKR[kept_G], self._gradient_GKR[kept_G]
        self.weights_GKR, self._decay_G1R = self.weights_GKR[kept_G], self._decay_G1R[kept_G]
        self._scores_GKN, self._losses_G = self._scores_GKN[kept_G], self._losses_G[kept_G]
        self._penalty_G, self._norm_G = self._penalty_G[kept_G], self._norm_G[kept_G]

    def layers(self, weights_GKR: Tensor) -> list[tuple[Tensor, Tensor]]:
        """weight_KD and bias_K of heads, in the original basis."""
        weights_GKD = _times(weights_GKR, self._basis.axes_RD.T)
        return list(zip(weights_GKD.unbind(), weights_GKR[:, :, -1].unbind(), strict=True))


def _times(left_GKR: Tensor, right: Tensor) -> Tensor:
    """One product with the rows of a matrix for all heads."""
    return product(left_GKR.flatten(0, 1), right).view(*left_GKR.shape[:2], -1)


def _dot(left_GKR: Tensor, right_GKR: Tensor) -> Tensor:
    dot_G: Tensor = torch.linalg.vecdot(left_GKR.flatten(1), right_GKR.flatten(1))
    return dot_G


def _run(
    descent: _Descent,
    trials: Sequence[Trial],
    schedule: Schedule,
    judge: Callable[[Tensor], Tensor],
    rows_MR: Tensor,
    log: Log,
) -> list[Fit]:
    """Iterate until no head gets better on the validation rows, or all have converged."""
    race = Race([descent.weights_GKR], schedule.patience, log)
    for epoch in range(1, schedule.epochs + 1):
        descent.step()
        if schedule.refit:
            continue
        going = race.judge(epoch, judge(descent.scores(rows_MR)), [descent.weights_GKR])
        if not going.any():
            break
        if not going.all():
            descent.keep(going)
    if schedule.refit:
        layers = descent.layers(descent.weights_GKR)
        return [Fit(trial, (layer,), schedule.epochs, ()) for trial, layer in zip(trials, layers, strict=True)]
    return [
        Fit(trial, (layer,), int(epoch), tuple(values))
        for trial, layer, epoch, values in zip(
            trials, descent.layers(race.kept[0]), race.best_epoch_G, race.losses, strict=True
        )
    ]
