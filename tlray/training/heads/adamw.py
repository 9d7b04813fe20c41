"""Many heads at once by AdamW in mini-batches: stacked weights, so that each batch is read once and multiplied by all heads.

What a head becomes does not depend on the others: all begin with the same weights and see the same batches, and the sum of
losses has each head's own gradient. AdamW as Loshchilov and Hutter 2019 (arXiv 1711.05101, algorithm 2) with the defaults of
torch.optim.AdamW; the rate falls along half a cosine (arXiv 1608.03983).

Shape legend: B rows, G heads, H inputs and K outputs of a layer.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from tlray.training.examples.examples import Split
from tlray.training.heads.objective import Objective, product
from tlray.training.heads.trials import Data, Fit, Log, Race, Schedule, Trial

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Stack:
    """G heads of the same layers, stacked: weights_GKH and biases_GK1 of each layer, ReLU and dropout between them.

    Args:
        widths: of the vectors, the hidden layers and the outputs.
        heads: G.
        dropout: probability.
        seed: of the first weights, which are torch's own of nn.Linear, and of dropout; a linear head begins at 0.
    """

    def __init__(self, widths: Sequence[int], heads: int, dropout: float, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._dropout = dropout
        self.tensors: list[Tensor] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for inputs, outputs in pairwise(widths):
                layer = nn.Linear(inputs, outputs)
                is_linear_head = len(widths) == 2
                for tensor in (layer.weight.detach(), layer.bias.detach()[:, None]):
                    stacked = tensor.expand(heads, *tensor.shape).clone()
                    self.tensors.append(stacked.zero_() if is_linear_head else stacked)

    def scores(self, features_BH: Tensor, *, training: bool) -> Tensor:
        """Compute the scores of all heads for a batch, GKB."""
        weights_GKH, bias_GK1 = self.tensors[:2]
        # All heads share the first layer's input: one product.
        flat = product(weights_GKH.flatten(0, 1), features_BH)
        values_GKB: Tensor = flat.view(*weights_GKH.shape[:2], -1) + bias_GK1
        for weights_GKH, bias_GK1 in zip(self.tensors[2::2], self.tensors[3::2], strict=True):
            values_GKB = torch.relu(values_GKB)
            if training and self._dropout:
                # The same mask for all heads, so that a head does not depend on how many there are.
                kept_KB = torch.rand(values_GKB.shape[1:], generator=self._generator) >= self._dropout
                values_GKB = values_GKB * kept_KB / (1 - self._dropout)
            values_GKB = torch.baddbmm(bias_GK1, weights_GKH, values_GKB)
        return values_GKB


class _AdamW:
    """The optimizer, with a rate and a decay for each head.

    Torch's fused step passes over the memory once, but has one rate for all: so it goes from 0 at rate 1 and without decay,
    and of that move each head takes the share that its own rate is.
    """

    def __init__(self, stack: Stack, trials: Sequence[Trial]) -> None:
        self._stack = stack
        self._rate_G11 = torch.tensor([trial.learning_rate for trial in trials])[:, None, None]
        self._decay_G11 = torch.tensor([trial.weight_decay for trial in trials])[:, None, None]
        self._first, self._second, self._moves = ([torch.zeros_like(tensor) for tensor in stack.tensors] for _ in range(3))
        self._steps = [torch.zeros(()) for _ in stack.tensors]

    def step(self, gradients: Sequence[Tensor], factor: float) -> None:
        for move in self._moves:
            move.zero_()
        adamw(
            self._moves,
            list(gradients),
            self._first,
            self._second,
            [],
            self._steps,
            fused=True,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=1.0,
            weight_decay=0.0,
            eps=EPSILON,
            maximize=False,
        )
        rate_G11 = self._rate_G11 * factor
        for tensor, move in zip(self._stack.tensors, self._moves, strict=True):
            tensor.mul_(1 - rate_G11 * self._decay_G11).addcmul_(move, rate_G11)

    def keep(self, kept_G: Tensor) -> None:
        self._rate_G11, self._decay_G11 = self._rate_G11[kept_G], self._decay_G11[kept_G]
        for tensors in (self._stack.tensors, self._first, self._second, self._moves):
            tensors[:] = [tensor[kept_G] for tensor in tensors]


def train_adamw(
    data: Data,
    trials: Sequence[Trial],
    schedule: Schedule,
    *,
    hidden: Sequence[int],
    dropout: float,
    log: Log,
) -> list[Fit]:
    """Train many heads at once by AdamW in mini-batches.

    Args:
        data: in memory or streamed.
        trials: of solver `adamw`.
        schedule: an epoch is a pass over the training rows; for a refit, the rate falls as it did in `epochs` of the schedule.
        hidden: widths of hidden layers.
        dropout: after each of them.
        log: is told of each epoch.
    """
    widths = (data.vectors.dimensions, *hidden, len(data.examples.classes))
    stack = Stack(widths, len(trials), dropout, schedule.seed)
    optimizer = _AdamW(stack, trials)
    generator = np.random.default_rng(schedule.seed)
    splits = (Split.TRAIN, Split.VALIDATION) if schedule.refit else (Split.TRAIN,)
    wanted_N = data.wanted(*splits)
    steps = schedule.epochs * math.ceil(int(wanted_N.sum()) / schedule.batch_size)
    # Vectors that are in memory are standardised once, not in each epoch.
    held = list(data.blocks(Split.VALIDATION)) if data.vectors.in_memory and not schedule.refit else None
    race, done = Race(stack.tensors, schedule.patience, log), 0
    for epoch in range(1, schedule.epochs + 1):
        for positions_B, features_BD in data.vectors.batches(wanted_N, schedule.batch_size, generator):
            gradients = _gradients(stack, data, positions_B, data.standardised(features_BD))
            optimizer.step(gradients, (1 + math.cos(math.pi * done / steps)) / 2)
            done += 1
        if schedule.refit:
            continue
        losses_G = _validation_losses(stack, data, held or data.blocks(Split.VALIDATION))
        going = race.judge(epoch, losses_G, stack.tensors)
        if not going.any():
            break
        if not going.all():
            optimizer.keep(going)
    if schedule.refit:
        return [Fit(trial, _layers(stack.tensors, at), schedule.epochs, ()) for at, trial in enumerate(trials)]
    return [
        Fit(trial, _layers(race.kept, at), int(race.best_epoch_G[at]), tuple(race.losses[at]))
        for at, trial in enumerate(trials)
    ]


def _layers(tensors: Sequence[Tensor], head: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """weight_KH and bias_K of each layer of one head."""
    return tuple((weights[head], bias[head, :, 0]) for weights, bias in zip(tensors[::2], tensors[1::2], strict=True))


def _gradients(stack: Stack, data: Data, positions_B: np.ndarray, features_BD: Tensor) -> Sequence[Tensor]:
    objective = Objective(data.targets[positions_B], data.weights[positions_B], data.examples.task)
    for tensor in stack.tensors:
        tensor.requires_grad_(True)
    loss = objective.losses(stack.scores(features_BD, training=True)).sum()
    gradients = torch.autograd.grad(loss, stack.tensors)
    for tensor in stack.tensors:
        tensor.requires_grad_(False)
    return gradients


def _validation_losses(stack: Stack, data: Data, held: Iterable[tuple[np.ndarray, Tensor]]) -> Tensor:
    total_G = torch.zeros(len(stack.tensors[0]), dtype=torch.float64)
    rows = 0
    for positions_B, features_BD in held:
        targets, weights_B = data.targets[positions_B], torch.ones(len(positions_B))
        losses_G = Objective(targets, weights_B, data.examples.task).losses(stack.scores(features_BD, training=False))
        total_G += losses_G.double() * len(positions_B)
        rows += len(positions_B)
    return total_G / rows
