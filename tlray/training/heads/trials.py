"""What the solvers of heads share: the trials of a grid, the data that they are trained on, and what comes out.

Shape legend: N examples, B examples of a block, D length of a vector, H inputs and K outputs of a layer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tlray.config import FitConfig
from tlray.errors import ExamplesError
from tlray.models.layers.heads import Head, HeadSpec
from tlray.training.examples.examples import Examples, Split
from tlray.training.examples.labels import shown
from tlray.training.examples.table_vectors import Vectors

Solver = Literal["cg", "adamw", "ridge"]
Log = Callable[[int, dict[str, float]], None]
"""Is told of each epoch and its numbers."""


def unlogged(_epoch: int, _metrics: dict[str, float]) -> None:
    """Take no note of an epoch."""


IMPROVEMENT = 1e-2
"""Least share by which a validation loss must fall to count as better: less is far below its own standard error, and heads
with little weight decay would creep on for dozens of epochs."""

BEHIND = 1.25
"""Times the least validation loss of all heads: one whose best is above it and that gets no better stops at once (a race, as of
Maron and Moore 1993). Chosen by measurement: it spares a third of the iterations and costs no loss, a smaller factor does."""

VARIANCE_FLOOR = 0.1
"""Share of the mean variance that is added to each before dividing by it. Channels after a ReLU that are nearly always zero
would otherwise be blown up until they drown the rest. Chosen by measurement: less loses accuracy, more gains nearly none, and
AdamW learns little from columns that stay small."""

UNLIKE = 100.0
"""Mean variance of columns over their median from which on they are in unlike units, such as areas, shares and counts: it is
under 20 of the vectors of networks and over 10,000 of such tables."""


@dataclass(frozen=True)
class Trial:
    """The settings of one head of a grid.

    Attributes:
        column: the embedding column.
        solver: how it is trained.
        weight_decay: of adamw decoupled (Loshchilov and Hutter 2019); of cg weight_decay / 2 * |W|^2 added to the mean loss; of
            ridge likewise, to half of the mean squared error.
        learning_rate: of adamw.
    """

    column: str
    solver: Solver
    weight_decay: float
    learning_rate: float | None = None


@dataclass(frozen=True)
class Fit:
    """A trained head, of standardised vectors; of a regression also for standardised targets.

    Attributes:
        trial: which one.
        layers: weight_KH and bias_K of each linear layer, as torch has them.
        best_epoch: number of the epoch (iteration) that it is of, from 1 up.
        validation_losses: of each epoch; a closed form has one, a refit none. Of a regression, of standardised targets.
        factor: of ridge, what makes its scores logits.
        row_losses: of the head that was kept, of each validation row in order.
        accuracy: likewise, the share of them that it gets right; NaN where there are no classes to choose from.
    """

    trial: Trial
    layers: tuple[tuple[Tensor, Tensor], ...]
    best_epoch: int
    validation_losses: tuple[float, ...]
    factor: float = 1.0
    row_losses: np.ndarray | None = None
    accuracy: float = float("nan")

    @property
    def validation_loss(self) -> float:
        """The validation loss of the head that was kept; NaN after a refit."""
        return self.validation_losses[self.best_epoch - 1] if self.validation_losses else float("nan")


@dataclass(frozen=True)
class Schedule:
    """For how long heads are trained, in which steps, and on what.

    Attributes:
        epochs: at most; exactly, if `refit`.
        patience: epochs without a better validation loss.
        batch_size: rows a step, of adamw.
        seed: of first weights, order and dropout, likewise.
        refit: train on the validation rows too and choose nothing.
    """

    epochs: int
    patience: int
    batch_size: int = 256
    seed: int = 0
    refit: bool = False

    @classmethod
    def of(cls, fit: FitConfig) -> "Schedule":
        """The schedule that a config asks for."""
        return cls(fit.epochs, fit.patience, fit.batch_size, fit.seed)


class Data:
    """Examples with their vectors in one column.

    Args:
        vectors: of the examples.
        examples: N of them.
        weights: float32, how much each example counts, of mean 1 over the training rows; N, or N, K of each label.
    """

    def __init__(self, vectors: Vectors, examples: Examples, weights: Tensor) -> None:
        self.vectors, self.examples, self.weights = vectors, examples, weights
        self.targets = torch.from_numpy(examples.learned_targets)

    def wanted(self, *splits: Split) -> np.ndarray:
        """Which examples are in these splits; bool, N."""
        return np.isin(self.examples.splits_N, splits)

    @cached_property
    def standard(self) -> tuple[Tensor, Tensor]:
        """mean_D and scale_D of the training rows, float32.

        The scale is 1 / sqrt(variance + VARIANCE_FLOOR * mean variance) or, of columns in `UNLIKE` units, 1 / sqrt(variance):
        there the floor would drown what is in columns of small numbers. One pass, merged block by block in float64 (Chan,
        Golub and LeVeque 1979).

        Raises:
            ExamplesError: vectors of examples, of whatever split, that are not finite.
        """
        count, mean_D, squares_D = 0, np.zeros(self.vectors.dimensions), np.zeros(self.vectors.dimensions)
        odd: list[str] = []
        for positions_B, features_BD in self.vectors.blocks(self.wanted(*Split)):
            finite_B = np.isfinite(features_BD).all(axis=1)
            odd += self.examples.uris.take(positions_B[~finite_B]).to_pylist()
            train_BD = features_BD[finite_B & (self.examples.splits_N[positions_B] == Split.TRAIN)]
            if len(train_BD):
                block_mean_D = train_BD.mean(axis=0, dtype=np.float64)
                difference_D, total = block_mean_D - mean_D, count + len(train_BD)
                squares_D += ((train_BD - block_mean_D) ** 2).sum(axis=0) + difference_D**2 * (count * len(train_BD) / total)
                mean_D, count = mean_D + difference_D * (len(train_BD) / total), total
        if odd:
            raise ExamplesError(
                f"the vectors of {len(odd)} images are not finite: {shown(odd)}; the table was damaged or written by another "
                "program: see `tlray verify`"
            )
        variance_D = squares_D / count
        scale_D = 1 / np.sqrt(_divisors(variance_D, mean_D))
        return torch.from_numpy(mean_D.astype(np.float32)), torch.from_numpy(scale_D.astype(np.float32))

    def standardised(self, features_BD: np.ndarray) -> Tensor:
        """Standardise vectors as heads take them."""
        mean_D, scale_D = self.standard
        return torch.from_numpy(features_BD).sub(mean_D).mul_(scale_D)

    def blocks(self, *splits: Split) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Positions and standardised vectors of all examples of some splits, in order."""
        for positions_B, features_BD in self.vectors.blocks(self.wanted(*splits)):
            yield positions_B, self.standardised(features_BD)

    def matrix(self, *splits: Split) -> tuple[np.ndarray, Tensor]:
        """Read the positions and standardised vectors of some splits into one array each."""
        positions, features = zip(*self.blocks(*splits), strict=True)
        return np.concatenate(positions), torch.cat(features)


def _divisors(variance_D: np.ndarray, mean_D: np.ndarray) -> np.ndarray:
    """What each column's scale is the root of; 1 where nothing varies."""
    varies_D = variance_D > (np.finfo(np.float32).eps * mean_D) ** 2  # less is rounding
    if not varies_D.any():
        return np.ones_like(variance_D)
    if variance_D[varies_D].mean() <= UNLIKE * np.median(variance_D[varies_D]):
        floored_D: np.ndarray = variance_D + VARIANCE_FLOOR * variance_D.mean()
        return floored_D
    return np.where(varies_D, variance_D, 1.0)


def go_on(best_G: np.ndarray, waited_G: np.ndarray, least: float, patience: int) -> np.ndarray:
    """Decide which heads of a grid are trained on.

    Args:
        best_G: least validation loss of each.
        waited_G: epochs since then.
        least: that of all heads, those that have stopped included.
        patience: epochs to wait for a better loss; a head that is `BEHIND` waits for none.
    """
    going_G: np.ndarray = waited_G < np.where(best_G > BEHIND * least, 1, patience)
    return going_G


class Race:
    """What is known of the heads of a grid.

    Args:
        tensors: of all heads, the head first.
        patience: epochs without a better validation loss.
        log: is told of each epoch.

    Attributes:
        losses: of each head, of each epoch that it was in training.
        best_epoch_G: number of the epoch of each head's least loss, from 1 up.
        kept: the tensors as they were then.
    """

    def __init__(self, tensors: Sequence[Tensor], patience: int, log: Log) -> None:
        heads = len(tensors[0])
        self.losses: list[list[float]] = [[] for _ in range(heads)]
        self.best_epoch_G = np.ones(heads, np.int64)
        self.kept = [tensor.clone() for tensor in tensors]
        self._active, self._best_G = np.arange(heads), np.full(heads, np.inf)
        self._patience, self._log = patience, log

    def judge(self, epoch: int, losses_g: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """Note the losses of an epoch, and decide which heads are trained on.

        Args:
            epoch: its number, from 1 up.
            losses_g: of the validation rows.
            tensors: of the heads in training.

        Returns:
            Which of these go on; bool, g.
        """
        active, now_g = self._active, losses_g.numpy().astype(np.float64)
        for head, loss in zip(active, now_g.tolist(), strict=True):
            self.losses[head].append(loss)
        better = now_g < self._best_G[active] * (1 - IMPROVEMENT)
        heads = active[better]
        self._best_G[heads], self.best_epoch_G[heads] = now_g[better], epoch
        for kept, tensor in zip(self.kept, tensors, strict=True):
            kept[heads] = tensor[better]
        least = float(self._best_G.min())
        self._log(epoch, {"heads": float(len(active)), "validation/loss": least})
        going = go_on(self._best_G[active], epoch - self.best_epoch_G[active], least, self._patience)
        self._active = active[going]
        return torch.from_numpy(going)


def to_head(fit: Fit, data: Data, *, dropout: float) -> Head:
    """A fit as a head of vectors as the table has them, in evaluation mode; of a regression, with values as they were given."""
    layers = list(fit.layers)
    if data.examples.task == "regression":
        mean_K, std_K = (torch.from_numpy(values_K) for values_K in data.examples.standard)
        weight_KH, bias_K = layers[-1]
        layers[-1] = (weight_KH * std_K[:, None], bias_K * std_K + mean_K)
    weights = [weight_KH for weight_KH, _ in layers]
    hidden = tuple(len(weight_KH) for weight_KH in weights[:-1])
    spec = HeadSpec(
        kind="mlp" if hidden else "linear",
        inputs=weights[0].shape[1],
        outputs=len(weights[-1]),
        hidden=hidden,
        dropout=dropout if hidden else 0.0,
    )
    head = Head.to_be_filled(spec)
    with torch.no_grad():
        for linear, (weight_KH, bias_K) in zip(head.linears, layers, strict=True):
            linear.weight.copy_(weight_KH)
            linear.bias.copy_(bias_K)
        head.mean_D.copy_(data.standard[0])
        head.scale_D.copy_(data.standard[1])
    return head.eval()


def scores_of(head: Head, data: Data) -> np.ndarray:
    """Compute the scores of a head for all examples; scores_NK, float32."""
    scores_NK = np.empty((len(data.examples), head.spec.outputs), np.float32)
    with torch.inference_mode():
        for positions_B, features_BD in data.vectors.blocks(data.wanted(*Split)):
            scores_NK[positions_B] = head(torch.from_numpy(features_BD)).numpy()
    return scores_NK


def row_of(fit: Fit, extra: dict[str, Any]) -> dict[str, Any]:
    """A fit as a row of the grid's table."""
    return {
        "column": fit.trial.column,
        "solver": fit.trial.solver,
        "learning_rate": fit.trial.learning_rate,
        "weight_decay": fit.trial.weight_decay,
        "epochs": len(fit.validation_losses),
        "best_epoch": fit.best_epoch,
        "validation_loss": fit.validation_loss,
        **extra,
    }
