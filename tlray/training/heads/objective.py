"""The products and losses of many linear heads at once, with what a second-order step needs.

Rows come last, so that sums over few classes are sums of long vectors: a softmax over the classes of 64 heads takes a twentieth
of the time that it takes with the classes last.

Shape legend: N rows, G heads, K outputs, X 1 or K; L and R rows of a left and a right matrix, M what is summed over.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from torch import Tensor

from tlray.predictor import Task


class Objective:
    """A weighted mean over rows of cross-entropy (single), mean binary cross-entropy (multi) or mean squared error.

    Args:
        targets: int64 N, or float32 N, K.
        weights: float32 N, or N, K of each output's loss (multi, regression); divided here by the sum of the rows' means.
        task: which loss.
    """

    def __init__(self, targets: Tensor, weights: Tensor, task: Task) -> None:
        self._task = task
        self._targets = targets[None, None] if task == "single" else targets.T[None].contiguous()
        weights_XN = weights.reshape(len(weights), -1).T.contiguous()
        self._weights_XN = weights_XN / weights_XN.mean(dim=0).sum()

    def losses(self, scores_GKN: Tensor) -> Tensor:
        """Compute the loss of each head, G."""
        if self._task == "single":
            at_G1N = self._targets.expand(len(scores_GKN), 1, -1)
            losses_GXN = -scores_GKN.log_softmax(dim=1).gather(1, at_G1N)
        else:
            loss = F.binary_cross_entropy_with_logits if self._task == "multi" else F.mse_loss
            losses_GXN = loss(scores_GKN, self._targets.expand_as(scores_GKN), reduction="none")
        return self._weighted(losses_GXN).sum(dim=1) / losses_GXN.shape[1]

    def expand(self, scores_GKN: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the first and second derivatives of the loss by the scores.

        Returns:
            The gradient by the scores, weighted, and what `diagonal` and `curvature` take: the probabilities (single) or the
            second derivatives (else).
        """
        outputs = scores_GKN.shape[1]
        if self._task == "single":
            probabilities_GKN = scores_GKN.softmax(dim=1)
            at_G1N = self._targets.expand(len(scores_GKN), 1, -1)
            residuals_GKN = probabilities_GKN.scatter_add(1, at_G1N, scores_GKN.new_tensor(-1.0).expand(at_G1N.shape))
            return residuals_GKN.mul_(self._weights_XN), probabilities_GKN
        if self._task == "multi":
            probabilities_GKN = torch.sigmoid(scores_GKN)
            residuals_GKN = (probabilities_GKN - self._targets).mul_(self._weights_XN / outputs)
            return residuals_GKN, probabilities_GKN * (1 - probabilities_GKN) / outputs
        residuals_GKN = (scores_GKN - self._targets).mul_(2 * self._weights_XN / outputs)
        return residuals_GKN, torch.full_like(scores_GKN, 2 / outputs)

    def diagonal(self, second_GKN: Tensor) -> Tensor:
        """Weighted mean of the Hessian's diagonal by the scores; GK."""
        diagonal_GKN = second_GKN * (1 - second_GKN) if self._task == "single" else second_GKN
        return self._weighted(diagonal_GKN)

    def curvature(self, second_GKN: Tensor, along_GKN: Tensor) -> Tensor:
        """Second derivative of the loss along a direction of the scores; G.

        For softmax the Hessian is diag(p) - p p', so it is the variance of the direction under p.
        """
        product_GKN = second_GKN * along_GKN
        if self._task != "single":
            return self._weighted(product_GKN.mul_(along_GKN)).sum(dim=1)
        mean_GN = product_GKN.sum(dim=1)
        rows_GN = product_GKN.mul_(along_GKN).sum(dim=1) - mean_GN**2
        return rows_GN @ self._weights_XN[0]

    def _weighted(self, values_GKN: Tensor) -> Tensor:
        """Sum values over rows, weighted; GK."""
        return torch.einsum("gkn,kn->gk", values_GKN, self._weights_XN.expand(values_GKN.shape[1], -1))


def product(left_LM: Tensor, right_RM: Tensor) -> Tensor:
    """`left_LM @ right_RM.T` by oneDNN, differentiable by the left one; by torch's own where it was built without oneDNN.

    Torch leaves matrix products at fp32 to MKL, which takes narrower instructions on processors that are not Intel's. The
    operator is that of torch's compiler for linear layers on CPUs; it takes a transposed view as it is.

    Args:
        left_LM: float32.
        right_RM: float32.
    """
    product_LR: Tensor = _Product.apply(left_LM, right_RM)
    return product_LR


class _Product(torch.autograd.Function):
    """The product with its derivative: the operator has none of its own."""

    @staticmethod
    def forward(ctx: Any, left_LM: Tensor, right_RM: Tensor) -> Tensor:
        ctx.save_for_backward(right_RM)
        if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return left_LM @ right_RM.T
        product_LR: Tensor = torch.ops.mkldnn._linear_pointwise(left_LM, right_RM, None, "none", [], "")
        return product_LR

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (right_RM,) = ctx.saved_tensors
        return product(gradients[0], right_RM.T), None
