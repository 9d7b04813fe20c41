"""A grid's heads in training: each one's losses, what it was at its best, and who goes on.

Shape legend: G heads of the grid, g of them that are still being trained.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tlray.training.heads.trials import IMPROVEMENT, go_on

Log = Callable[[int, dict[str, float]], None]


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
        """Take note of an epoch.

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
