"""A grid of heads in one pass: which trials there are, who trains them, which is best.

Shape legend: N examples, B rows of a block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from tlray.config import GridConfig, HeadConfig
from tlray.errors import ConfigError
from tlray.training.examples.examples import Split
from tlray.training.examples.losses import row_losses
from tlray.training.heads.adamw import train_adamw
from tlray.training.heads.conjugate_gradients import MAX_COMPONENTS, conjugate_gradients, heads_at_once
from tlray.training.heads.objective import product
from tlray.training.heads.ridge import train_ridge
from tlray.training.heads.trials import Data, Fit, Log, Schedule, Solver, Trial, row_of, unlogged

DEFAULT_RATES = (1e-4, 1e-3, 1e-2)
DEFAULT_DECAYS: dict[Solver, tuple[float, ...]] = {
    "cg": tuple(float(f"{value:.2g}") for value in np.geomspace(1e-6, 10, 15)),
    "adamw": (0.0, 1e-2, 1e-1, 1.0),
    "ridge": tuple(float(f"{value:.2g}") for value in np.geomspace(1e-4, 1e3, 22)),
}
"""Wide enough that the best is inside on vectors standardised as ours; scikit-learn's C of N rows is 1 / (N * decay)."""


ERRORS = 2.0
"""Standard errors of the mean difference of two heads' losses, some 95 %, within which they cannot be told apart. Heads that
are chosen so were as accurate on test rows as those of the least loss, or more."""


def solver_of(data: Data, head: HeadConfig, grid: GridConfig, memory_bytes: int) -> Solver:
    """Choose who trains the heads of one column.

    Raises:
        ConfigError: conjugate gradients are asked for and do not fit in memory.
    """
    if head.kind == "ridge":
        return "ridge"
    if head.kind == "mlp" or head.solver == "adamw" or grid.learning_rates:
        return "adamw"
    fits = data.vectors.in_memory and heads_at_once(data, memory_bytes) > 0
    if head.solver == "cg" and not fits:
        raise ConfigError(
            f"head.solver cg needs all vectors in memory, and {len(data.examples)} of {data.vectors.dimensions} floats are too "
            f"many for {memory_bytes} bytes; give more memory_bytes, or head.solver adamw or head.kind ridge, which stream"
        )
    components = min(len(data.examples.positions(Split.TRAIN)), data.vectors.dimensions)
    return "cg" if fits and (head.solver == "cg" or components <= MAX_COMPONENTS) else "adamw"


def trials_of(column: str, solver: Solver, grid: GridConfig) -> list[Trial]:
    """List the heads of one column: every rate with every weight decay."""
    decays = grid.weight_decays or DEFAULT_DECAYS[solver]
    rates = (grid.learning_rates or DEFAULT_RATES) if solver == "adamw" else (None,)
    return [Trial(column, solver, decay, rate) for rate in rates for decay in decays]


def train_trials(
    data: Data, trials: Sequence[Trial], schedule: Schedule, head: HeadConfig, memory_bytes: int, log: Log
) -> list[Fit]:
    """Train all trials of one column, by their solver, and judge them row by row unless the validation rows are trained on."""
    if trials[0].solver == "ridge":
        fits = train_ridge(data, trials)
    elif trials[0].solver == "cg":
        fits = conjugate_gradients(data, trials, schedule, heads_at_once(data, memory_bytes), log)
    else:
        fits = train_adamw(data, trials, schedule, hidden=head.widths, dropout=head.dropout, log=log)
    return fits if schedule.refit else _judged(fits, data)


def best_of(fits: Sequence[Fit]) -> Fit:
    """Choose the simplest of the heads that are as good as the best: the one of the largest weight decay.

    As good is one that differs in weight decay alone and loses no more than `ERRORS` standard errors of the mean difference,
    row by row: a small validation set cannot tell the two apart. Breiman, Friedman, Olshen and Stone (1984) take one standard
    error of the least loss itself.

    Raises:
        ConfigError: none has a finite loss.
    """
    finite = [fit for fit in fits if np.isfinite(fit.validation_loss)]
    if not finite:
        raise ConfigError(f"the loss of all {len(fits)} heads is not finite; give smaller grid.learning_rates")
    least = min(finite, key=lambda fit: fit.validation_loss)
    alike = [fit for fit in finite if replace(fit.trial, weight_decay=least.trial.weight_decay) == least.trial]
    return max((fit for fit in alike if fit is least or _as_good(fit, least)), key=lambda fit: fit.trial.weight_decay)


def _as_good(fit: Fit, least: Fit) -> bool:
    if fit.row_losses is None or least.row_losses is None or len(fit.row_losses) < 2:
        return False
    worse_M = fit.row_losses.astype(np.float64) - least.row_losses
    return bool(worse_M.mean() <= ERRORS * worse_M.std(ddof=1) / len(worse_M) ** 0.5)


def trained_again(fit: Fit, data: Data, schedule: Schedule, head: HeadConfig, memory_bytes: int) -> Fit:
    """Train the same head on the training and validation rows together, for as many epochs; its losses stay those before."""
    schedule = replace(schedule, epochs=fit.best_epoch, refit=True)
    if fit.trial.solver == "ridge":
        (again,) = train_ridge(data, [fit.trial], [fit.factor])
    else:
        (again,) = train_trials(data, [fit.trial], schedule, head, memory_bytes, unlogged)
    return replace(again, validation_losses=fit.validation_losses)


def table_of(fits: Sequence[Fit], data_of: Mapping[str, Data]) -> list[dict[str, Any]]:
    """List all heads of a grid as rows, the best first and then by loss, with their accuracy where they tell classes apart."""
    best = best_of(fits)
    ordered = sorted(fits, key=lambda fit: (fit is not best, not np.isfinite(fit.validation_loss), fit.validation_loss))
    single = [data_of[fit.trial.column].examples.task == "single" for fit in ordered]
    return [row_of(fit, {"validation_accuracy": fit.accuracy} if one else {}) for fit, one in zip(ordered, single, strict=True)]


def _judged(fits: Sequence[Fit], data: Data) -> list[Fit]:
    """Add to each fit its loss on every validation row and, of classes, its accuracy on them."""
    task = data.examples.task
    losses: list[list[np.ndarray]] = [[] for _ in fits]
    right, rows = np.zeros(len(fits), np.int64), 0
    for positions_B, features_BD in data.blocks(Split.VALIDATION):
        targets = data.targets[positions_B]
        for at, fit in enumerate(fits):
            scores_BK = _scores(fit, features_BD)
            losses[at].append(row_losses(scores_BK, targets, task).numpy())
            if task == "single":
                right[at] += int((scores_BK.argmax(dim=1) == targets).sum())
        rows += len(positions_B)
    accuracies = np.round(right / rows, 6) if task == "single" else np.full(len(fits), np.nan)
    judged = zip(fits, losses, accuracies.tolist(), strict=True)
    return [replace(fit, row_losses=np.concatenate(parts), accuracy=accuracy) for fit, parts, accuracy in judged]


def _scores(fit: Fit, values_BH: Tensor) -> Tensor:
    for at, (weight_KH, bias_K) in enumerate(fit.layers):
        values_BH = product(values_BH.relu() if at else values_BH, weight_KH) + bias_K
    return values_BH
