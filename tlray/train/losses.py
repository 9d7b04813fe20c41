"""What training makes small, one number a row.

Shape legend: B rows, N rows of a split, K outputs.
"""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from torch import Tensor

from tlray.errors import ConfigError
from tlray.output import Task


def row_losses(scores_BK: Tensor, targets: Tensor, task: Task) -> Tensor:
    """Cross-entropy (single), mean binary cross-entropy of the outputs (multi) or mean squared error (regression); B floats."""
    if task == "single":
        return F.cross_entropy(scores_BK, targets, reduction="none")
    loss = F.binary_cross_entropy_with_logits if task == "multi" else F.mse_loss
    return loss(scores_BK, targets, reduction="none").mean(dim=1)


def row_weights(targets: np.ndarray, train: np.ndarray, task: Task, classes: int, how: str) -> Tensor:
    """How much each example counts: the same, or such that each class of the training rows does.

    Args:
        targets: of all examples.
        train: positions of those that are trained on.
        task: balanced is for single alone.
        classes: K.
        how: `none` or `balanced`.

    Returns:
        float32, one for each example, of mean 1 over the training rows.

    Raises:
        ConfigError: balanced, and not single.
    """
    if how == "none":
        return torch.ones(len(targets))
    if task != "single":
        raise ConfigError(f"class_weights {how} with task {task}; a network's classes are balanced with task single only")
    counts_K = np.bincount(targets[train], minlength=classes)
    weights_K = len(train) / (np.count_nonzero(counts_K) * np.maximum(counts_K, 1))
    return torch.from_numpy(weights_K[targets].astype(np.float32))
