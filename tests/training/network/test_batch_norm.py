"""Batch norms of two processes against plain ones on the whole batch; threads stand for the processes."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from tlray.training.network.learner.batch_norm import shared_batch_norms
from tlray.training.network.processes import Alone


class Two(Alone):
    """One of two processes that add up."""

    size = 2

    def __init__(self, rank: int, sums: list[Tensor | None], barrier: threading.Barrier) -> None:
        super().__init__("cpu")
        self.rank, self._sums, self._barrier = rank, sums, barrier

    def sum(self, tensor: Tensor) -> Tensor:
        self._sums[self.rank] = tensor.clone()
        self._barrier.wait(60)
        one, other = self._sums
        assert one is not None and other is not None
        tensor.copy_(one + other)
        self._barrier.wait(60)
        return tensor


@pytest.mark.parametrize("shares", [(3, 2), (5, 0)])
def test_two_compute_what_one_does_on_the_whole_batch(shares: tuple[int, int]) -> None:
    """A process without rows has one that is not to count."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3, 2, bias=False)  # the gradient of one before a norm is rounding alone
    norms = nn.BatchNorm2d(4), nn.ReLU(), BatchNormAct2d(4), nn.Flatten(), nn.BatchNorm1d(36, affine=False)
    whole = nn.Sequential(convolution, *norms)
    images, wanted = 5 * torch.randn(5, 3, 7, 7) + 100, torch.randn(5, 36)
    parts = [copy.deepcopy(whole), copy.deepcopy(whole)]
    expected = whole(images)
    (expected * wanted).sum().backward()
    sums: list[Tensor | None] = [None, None]
    barrier = threading.Barrier(2)

    def work(rank: int) -> Tensor:
        rows = slice(0, shares[0]) if rank == 0 else slice(shares[0], 5)
        counts = shares[rank] > 0
        inputs = images[rows] if counts else images[:1]
        with shared_batch_norms(Two(rank, sums, barrier), counts=counts):
            outputs = parts[rank](inputs)
        (outputs * (wanted[rows] if counts else 0)).sum().backward()
        return outputs.detach()[: shares[rank]]

    with ThreadPoolExecutor(2) as threads:
        outputs = list(threads.map(work, range(2)))
    assert torch.allclose(torch.cat(outputs), expected, atol=1e-4)
    # What a later norm undoes, as a scale, has a gradient of rounding alone: against the largest of all.
    largest = max(float(parameter.grad.abs().max()) for parameter in whole.parameters())
    for name, parameter in whole.named_parameters():
        found = sum(part.get_parameter(name).grad for part in parts)
        assert torch.allclose(found, parameter.grad, rtol=1e-3, atol=1e-5 * largest), name
    for part in parts:
        for name, buffer in whole.named_buffers():
            assert torch.allclose(part.get_buffer(name).double(), buffer.double(), rtol=1e-4, atol=1e-4), name


def test_a_norm_in_evaluation_mode_stays_what_it_is() -> None:
    norm, images = nn.BatchNorm2d(3).eval(), torch.randn(2, 3, 4, 4)
    with shared_batch_norms(Two(0, [None, None], threading.Barrier(2)), counts=True):
        assert torch.equal(norm(images), images / (1 + norm.eps) ** 0.5)
