"""Products by oneDNN against torch's own."""

import pytest
import torch

from tlray.training.heads.objective import product


@pytest.mark.parametrize("rows", [3, 100])
def test_a_product_and_its_derivative_are_those_of_torch(rows: int) -> None:
    left, right = torch.randn(rows, 7, requires_grad=True), torch.randn(5, 7)
    along = torch.randn(rows, 5)
    assert torch.allclose(product(left, right), left @ right.T, atol=1e-5)
    assert torch.allclose(product(left, right.T.contiguous().T), left @ right.T, atol=1e-5)
    found, expected = (torch.autograd.grad(scores, left, along)[0] for scores in (product(left, right), left @ right.T))
    assert torch.allclose(found, expected, atol=1e-5)
