"""What training makes small, one number a row.

Shape legend: B rows, N rows of a split, K outputs, X 1 or K.
"""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from torch import Tensor

from tlray.config import HeadConfig
from tlray.errors import ConfigError
from tlray.predictor import Task


def row_losses(scores_BK: Tensor, targets: Tensor, task: Task, weights_BX: Tensor | None = None) -> Tensor:
    """Cross-entropy (single), mean binary cross-entropy of the outputs (multi) or mean squared error (regression); B floats.

    Args:
        scores_BK: of a network or head.
        targets: int64 B (single), else float32 B, K.
        task: which loss.
        weights_BX: what the losses are multiplied by, before the mean over outputs is taken.
    """
    if task == "single":
        losses_BX = F.cross_entropy(scores_BK, targets, reduction="none")[:, None]
    else:
        loss = F.binary_cross_entropy_with_logits if task == "multi" else F.mse_loss
        losses_BX = loss(scores_BK, targets, reduction="none")
    return (losses_BX if weights_BX is None else losses_BX * weights_BX).mean(dim=1)


def check_class_weights(how: str, task: Task, head: HeadConfig) -> None:
    """Refuse weights of classes where they mean nothing.

    Raises:
        ConfigError: balanced, with a regression, or with a closed form that has one matrix for all labels.
    """
    if how == "none":
        return
    if task == "regression":
        raise ConfigError(f"class_weights {how} with task regression, which has no classes; leave it out")
    if task == "multi" and head.kind == "ridge":
        raise ConfigError(
            f"class_weights {how} with head.kind ridge and task multi: its closed form solves all labels "
            "with one weight a row; give --head.kind linear"
        )


def row_weights(targets: np.ndarray, train: np.ndarray, task: Task, classes: int, how: str) -> Tensor:
    """How much each example counts: the same, or such that each class of the training rows does.

    Balanced is what scikit-learn calls so (King and Zeng 2001): rows / (classes * rows of the class). Each label of task multi
    is balanced by itself, as two classes; that is torch's `pos_weight` of negatives / positives, at another scale.

    Args:
        targets: of all examples.
        train: positions of those that are trained on.
        task: balanced is for single and multi.
        classes: K.
        how: `none` or `balanced`.

    Returns:
        float32, one for each example, or N, K of them for each of its labels (balanced and multi); of mean 1 over the training
        rows.
    """
    if how == "none":
        return torch.ones(len(targets))
    if task == "multi":
        positives_K = targets[train].sum(axis=0, dtype=np.int64)
        weights_2K = _balanced(np.stack([len(train) - positives_K, positives_K]))
        return torch.from_numpy(np.where(targets > 0, weights_2K[1], weights_2K[0]).astype(np.float32))
    weights_K = _balanced(np.bincount(targets[train], minlength=classes))
    return torch.from_numpy(weights_K[targets].astype(np.float32))


def _balanced(counts: np.ndarray) -> np.ndarray:
    """Weights of classes (first axis) by how often they are there; those that are not take no share."""
    weights: np.ndarray = counts.sum(axis=0) / (np.count_nonzero(counts, axis=0) * np.maximum(counts, 1))
    return weights
