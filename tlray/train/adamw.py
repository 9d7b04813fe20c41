"""Many heads at once by AdamW in mini-batches: stacked weights, so that each batch is read once and multiplied by all heads.

What a head becomes does not depend on the others: all begin with the same weights and see the same batches, and the sum of
losses has each head's own gradient. AdamW as Loshchilov and Hutter 2019 (arXiv 1711.05101, algorithm 2) with the defaults of
torch.optim.AdamW; the rate falls along half a cosine (arXiv 1608.03983).

Shape legend: B rows, G heads, H inputs and K outputs of a layer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from tlray.train.examples import Split
from tlray.train.objective import Objective
from tlray.train.products import product
from tlray.train.trials import IMPROVEMENT, Data, Fit, Schedule, Trial, go_on

BETAS = (0.9, 0.999)
EPSILON = 1e-8
Log = Callable[[int, dict[str, float]], None]


class Stack:
    """The same layers G times: weights_GKH and biases_GK1 of each, ReLU and dropout between them.

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
        """GKB."""
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

    def layers(self, head: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """weight_KH and bias_K of each layer of one head."""
        pairs = zip(self.tensors[::2], self.tensors[1::2], strict=True)
        # Clones: a view would go on being trained.
        return tuple((weights[head].clone(), bias[head, :, 0].clone()) for weights, bias in pairs)


class _AdamW:
    """The optimizer, with a rate and a decay for each head."""

    def __init__(self, stack: Stack, trials: Sequence[Trial]) -> None:
        self._stack = stack
        self._rate_G11 = torch.tensor([trial.learning_rate for trial in trials])[:, None, None]
        self._decay_G11 = torch.tensor([trial.weight_decay for trial in trials])[:, None, None]
        self._first = [torch.zeros_like(tensor) for tensor in stack.tensors]
        self._second = [torch.zeros_like(tensor) for tensor in stack.tensors]
        self._steps = 0

    def step(self, gradients: Sequence[Tensor], factor: float) -> None:
        self._steps += 1
        rate_G11 = self._rate_G11 * factor
        correction = math.sqrt(1 - BETAS[1] ** self._steps)
        # rate * first / (second's root + epsilon), both corrected, rearranged so as to pass over the memory less often.
        divisor_G11 = (1 - BETAS[0] ** self._steps) / (rate_G11 * correction)
        parts = zip(self._stack.tensors, gradients, self._first, self._second, strict=True)
        for tensor, gradient, first, second in parts:
            tensor.mul_(1 - rate_G11 * self._decay_G11)
            first.lerp_(gradient, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            tensor.addcdiv_(first, second.sqrt().add_(EPSILON * correction).mul_(divisor_G11), value=-1)

    def keep(self, kept_G: Tensor) -> None:
        self._rate_G11, self._decay_G11 = self._rate_G11[kept_G], self._decay_G11[kept_G]
        for tensors in (self._stack.tensors, self._first, self._second):
            tensors[:] = [tensor[kept_G] for tensor in tensors]


def train_adamw(
    data: Data,
    trials: Sequence[Trial],
    schedule: Schedule,
    *,
    hidden: Sequence[int],
    dropout: float,
    batch_size: int,
    seed: int,
    log: Log,
) -> list[Fit]:
    """Train heads.

    Args:
        data: in memory or streamed.
        trials: of solver `adamw`.
        schedule: an epoch is a pass over the training rows; for a refit, the rate falls as it did in `epochs` of the schedule.
        hidden: widths of hidden layers.
        dropout: after each of them.
        batch_size: rows a step.
        seed: of first weights, order and dropout.
        log: is told of each epoch.
    """
    widths = (data.vectors.dimensions, *hidden, len(data.examples.classes))
    stack = Stack(widths, len(trials), dropout, seed)
    optimizer = _AdamW(stack, trials)
    generator = np.random.default_rng(seed)
    splits = (Split.TRAIN, Split.VALIDATION) if schedule.refit else (Split.TRAIN,)
    wanted_T = data.wanted(*splits)
    steps = schedule.epochs * math.ceil(int(wanted_T.sum()) / batch_size)
    fits = [Fit(trial, stack.layers(at), 1, ()) for at, trial in enumerate(trials)]
    active, done = np.arange(len(trials)), 0
    for epoch in range(1, schedule.epochs + 1):
        for rows_B, features_BD in data.vectors.batches(wanted_T, batch_size, generator):
            gradients = _gradients(stack, data, data.positions(rows_B), data.standardised(features_BD))
            optimizer.step(gradients, (1 + math.cos(math.pi * done / steps)) / 2)
            done += 1
        if schedule.refit:
            continue
        losses = _validation_losses(stack, data)
        for at, (head, loss) in enumerate(zip(active, losses, strict=True)):
            fits[head] = _updated(fits[head], epoch, loss, stack, at)
        log(epoch, {"heads": float(len(active)), "validation/loss": min(fit.validation_loss for fit in fits)})
        best_G = np.array([fit.validation_loss for fit in fits])
        waited_G = epoch - np.array([fits[head].best_epoch for head in active])
        going = go_on(best_G[active], waited_G, np.fmin.reduce(best_G), schedule.patience)
        if not going.any():
            break
        if not going.all():
            active = active[going]
            optimizer.keep(torch.from_numpy(going))
    if schedule.refit:
        return [Fit(trial, stack.layers(at), schedule.epochs, ()) for at, trial in enumerate(trials)]
    return fits


def _updated(fit: Fit, epoch: int, loss: float, stack: Stack, at: int) -> Fit:
    losses = (*fit.validation_losses, loss)
    if epoch > 1 and not loss < fit.validation_loss * (1 - IMPROVEMENT):
        return replace(fit, validation_losses=losses)
    return replace(fit, validation_losses=losses, best_epoch=epoch, layers=stack.layers(at))


def _gradients(stack: Stack, data: Data, positions_B: np.ndarray, features_BD: Tensor) -> Sequence[Tensor]:
    objective = Objective(data.targets[positions_B], data.weights[positions_B], data.examples.task)
    for tensor in stack.tensors:
        tensor.requires_grad_(True)
    loss = objective.losses(stack.scores(features_BD, training=True)).sum()
    gradients = torch.autograd.grad(loss, stack.tensors)
    for tensor in stack.tensors:
        tensor.requires_grad_(False)
    return gradients


def _validation_losses(stack: Stack, data: Data) -> list[float]:
    total_G = torch.zeros(len(stack.tensors[0]), dtype=torch.float64)
    rows = 0
    for positions_B, features_BD in data.blocks(Split.VALIDATION):
        targets, weights_B = data.targets[positions_B], torch.ones(len(positions_B))
        losses_G = Objective(targets, weights_B, data.examples.task).losses(stack.scores(features_BD, training=False))
        total_G += losses_G.double() * len(positions_B)
        rows += len(positions_B)
    return (total_G / rows).tolist()
