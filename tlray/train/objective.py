"""The losses of many linear heads at once, with what a second-order step needs.

Shape legend: N rows, G heads, K outputs.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from torch import Tensor

from tlray.output import Task


class Objective:
    """A weighted mean over rows of cross-entropy (single), mean binary cross-entropy (multi) or mean squared error.

    Args:
        targets: int64 N, or float32 N, K.
        weights_N: float32; divided by their sum here.
        task: which loss.
    """

    def __init__(self, targets: Tensor, weights_N: Tensor, task: Task) -> None:
        self._targets, self._task = targets, task
        self._weights_N = weights_N / weights_N.sum()

    def losses(self, scores_NGK: Tensor) -> Tensor:
        """Of each head; G."""
        if self._task == "single":
            at_NG1 = self._targets[:, None, None].expand(-1, scores_NGK.shape[1], 1)
            rows_NG = scores_NGK.logsumexp(dim=2) - scores_NGK.gather(2, at_NG1)[..., 0]
        else:
            targets_NGK = self._targets[:, None, :].expand_as(scores_NGK)
            loss = F.binary_cross_entropy_with_logits if self._task == "multi" else F.mse_loss
            rows_NG = loss(scores_NGK, targets_NGK, reduction="none").mean(dim=2)
        return self._weights_N @ rows_NG

    def expand(self, scores_NGK: Tensor) -> tuple[Tensor, Tensor]:
        """First and second derivatives.

        Returns:
            The gradient by the scores, weighted, and what `diagonal` and `curvature` take: the probabilities (single) or the
            second derivatives (else).
        """
        outputs = scores_NGK.shape[2]
        weights_N11 = self._weights_N[:, None, None]
        if self._task == "single":
            # torch.softmax takes three times as long where there are few classes.
            probabilities_NGK = (scores_NGK - scores_NGK.logsumexp(dim=2, keepdim=True)).exp_()
            residuals_NGK = probabilities_NGK.clone()
            at_NG1 = self._targets[:, None, None].expand(-1, scores_NGK.shape[1], 1)
            residuals_NGK.scatter_add_(2, at_NG1, residuals_NGK.new_tensor(-1.0).expand(at_NG1.shape))
            return residuals_NGK.mul_(weights_N11), probabilities_NGK
        targets_N1K = self._targets[:, None, :]
        if self._task == "multi":
            probabilities_NGK = torch.sigmoid(scores_NGK)
            residuals_NGK = (probabilities_NGK - targets_N1K).mul_(weights_N11 / outputs)
            return residuals_NGK, probabilities_NGK * (1 - probabilities_NGK) / outputs
        residuals_NGK = (scores_NGK - targets_N1K).mul_(2 * weights_N11 / outputs)
        return residuals_NGK, torch.full_like(scores_NGK, 2 / outputs)

    def diagonal(self, second_NGK: Tensor) -> Tensor:
        """Weighted mean of the Hessian's diagonal by the scores; GK."""
        diagonal_NGK = second_NGK * (1 - second_NGK) if self._task == "single" else second_NGK
        return torch.einsum("n,ngk->gk", self._weights_N, diagonal_NGK)

    def curvature(self, second_NGK: Tensor, along_NGK: Tensor) -> Tensor:
        """Second derivative of the loss along a direction of the scores; G.

        For softmax the Hessian is diag(p) - p p', so it is the variance of the direction under p.
        """
        product_NGK = second_NGK * along_NGK
        rows_NG = torch.einsum("ngk,ngk->ng", product_NGK, along_NGK)
        if self._task == "single":
            rows_NG = rows_NG - product_NGK.sum(dim=2) ** 2
        return self._weights_N @ rows_NG
