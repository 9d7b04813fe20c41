"""A grid of heads in one pass: which trials there are, who trains them, which is best.

Shape legend: N examples, B rows of a block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from torch import Tensor

from tlray.config import TrainConfig
from tlray.errors import ConfigError
from tlray.train.adamw import train_adamw
from tlray.train.conjugate import MAX_COMPONENTS, Log, conjugate_gradients, heads_at_once
from tlray.train.examples import Split
from tlray.train.ridge import train_ridge
from tlray.train.trials import Data, Fit, Schedule, Solver, Trial, row_of

DEFAULT_HIDDEN = (256,)
DEFAULT_RATES = (1e-4, 1e-3, 1e-2)
DEFAULT_DECAYS: dict[Solver, tuple[float, ...]] = {
    "cg": tuple(float(f"{value:.2g}") for value in np.geomspace(1e-6, 10, 15)),
    "adamw": (0.0, 1e-2, 1e-1, 1.0),
    "ridge": tuple(float(f"{value:.2g}") for value in np.geomspace(1e-4, 1e3, 22)),
}
"""Wide enough that the best is inside on vectors standardised as ours; scikit-learn's C of N rows is 1 / (N * decay)."""


def check_head(config: TrainConfig) -> None:
    """Refuse settings of `head` and `grid` that exclude each other.

    Raises:
        ConfigError: names them.
    """
    head, rates = config.head, config.grid.learning_rates
    if head.kind != "mlp" and (head.hidden or head.dropout):
        raise ConfigError(f"head.hidden and head.dropout are of an MLP, but head.kind is {head.kind}; give --head.kind mlp")
    if head.kind != "linear" and head.solver == "cg":
        raise ConfigError(f"head.solver cg is for linear heads, but head.kind is {head.kind}; leave head.solver out")
    if rates and (head.kind == "ridge" or head.solver == "cg"):
        raise ConfigError("grid.learning_rates are of head.solver adamw; the other solvers need none: leave them out")
    if any(not rate > 0 for rate in rates) or any(not decay >= 0 for decay in config.grid.weight_decays):
        raise ConfigError("grid.learning_rates must be over 0 and grid.weight_decays 0 or more")


def solver_of(data: Data, config: TrainConfig, memory_bytes: int) -> Solver:
    """Who trains the heads of one column.

    Raises:
        ConfigError: conjugate gradients are asked for and do not fit in memory.
    """
    if config.head.kind == "ridge":
        return "ridge"
    if config.head.kind == "mlp" or config.head.solver == "adamw" or config.grid.learning_rates:
        return "adamw"
    fits = data.vectors.in_memory and heads_at_once(data, memory_bytes) > 0
    if config.head.solver == "cg" and not fits:
        raise ConfigError(
            f"head.solver cg needs all vectors in memory, and {len(data.examples)} of {data.vectors.dimensions} floats are too "
            f"many for {memory_bytes} bytes; give more memory_bytes, or head.solver adamw or head.kind ridge, which stream"
        )
    components = min(len(data.examples.positions(Split.TRAIN)), data.vectors.dimensions)
    return "cg" if fits and (config.head.solver == "cg" or components <= MAX_COMPONENTS) else "adamw"


def trials_of(column: str, solver: Solver, config: TrainConfig) -> list[Trial]:
    """The trials of one column."""
    decays = config.grid.weight_decays or DEFAULT_DECAYS[solver]
    rates = (config.grid.learning_rates or DEFAULT_RATES) if solver == "adamw" else (None,)
    return [Trial(column, solver, decay, rate) for rate in rates for decay in decays]


def train_trials(
    data: Data, trials: Sequence[Trial], schedule: Schedule, config: TrainConfig, memory_bytes: int, log: Log
) -> list[Fit]:
    """Train all trials of one column, by their solver."""
    if trials[0].solver == "ridge":
        return train_ridge(data, trials)
    if trials[0].solver == "cg":
        return conjugate_gradients(data, trials, schedule, heads_at_once(data, memory_bytes), log)
    return train_adamw(
        data,
        trials,
        schedule,
        hidden=hidden_of(config),
        dropout=config.head.dropout,
        batch_size=config.batch_size,
        seed=config.seed,
        log=log,
    )


def hidden_of(config: TrainConfig) -> tuple[int, ...]:
    """Widths of the hidden layers."""
    return (config.head.hidden or DEFAULT_HIDDEN) if config.head.kind == "mlp" else ()


def best_of(fits: Sequence[Fit]) -> Fit:
    """The fit of the least validation loss; the first of equal ones.

    Raises:
        ConfigError: none has a finite loss.
    """
    finite = [fit for fit in fits if np.isfinite(fit.validation_loss)]
    if not finite:
        raise ConfigError(f"the loss of all {len(fits)} heads is not finite; give smaller grid.learning_rates")
    return min(finite, key=lambda fit: fit.validation_loss)


def trained_again(fit: Fit, data: Data, config: TrainConfig, memory_bytes: int) -> Fit:
    """The same trial on the training and validation rows together, for as many epochs; what it lost before is kept."""
    schedule = Schedule(fit.best_epoch, config.patience, refit=True)
    if fit.trial.solver == "ridge":
        (again,) = train_ridge(data, [fit.trial], [fit.factor])
    else:
        (again,) = train_trials(data, [fit.trial], schedule, config, memory_bytes, lambda _epoch, _metrics: None)
    return replace(again, validation_losses=fit.validation_losses)


def table_of(fits: Sequence[Fit], data_of: Mapping[str, Data]) -> list[dict[str, Any]]:
    """All heads of a grid, the best first, with their accuracy on the validation rows where they tell classes apart."""
    rows: list[dict[str, Any]] = []
    for column, data in data_of.items():
        ours = [fit for fit in fits if fit.trial.column == column]
        extras: list[dict[str, Any]] = [{} for _ in ours]
        if data.examples.task == "single":
            extras = [{"validation_accuracy": value} for value in _accuracies(ours, data)]
        rows += [row_of(fit, extra) for fit, extra in zip(ours, extras, strict=True)]
    return sorted(rows, key=lambda row: (not np.isfinite(row["validation_loss"]), row["validation_loss"]))


def _accuracies(fits: Sequence[Fit], data: Data) -> list[float]:
    right, rows = np.zeros(len(fits), np.int64), 0
    for positions_B, features_BD in data.blocks(Split.VALIDATION):
        targets_B = data.targets[positions_B]
        right += [int((_scores(fit, features_BD).argmax(dim=1) == targets_B).sum()) for fit in fits]
        rows += len(positions_B)
    return [float(value) for value in np.round(right / rows, 6)]


def _scores(fit: Fit, values_BH: Tensor) -> Tensor:
    for at, (weight_KH, bias_K) in enumerate(fit.layers):
        values_BH = F.linear(values_BH.relu() if at else values_BH, weight_KH, bias_K)
    return values_BH
