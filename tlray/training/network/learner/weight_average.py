"""A moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tlray.training.network.learner.transfer_network import TransferNetwork


class Average:
    """Exponential moving average of what is learned.

    It begins with short memory, `min(decay, (1 + step) / (10 + step))`, as TensorFlow's ExponentialMovingAverage with
    `num_updates` does it, so that the first weights do not stay in it for long.

    Args:
        network: it follows.
        decay: 0 for none.

    Attributes:
        tensors: the average, by the names of `TransferNetwork.learned`; empty where there is none.
    """

    def __init__(self, network: TransferNetwork, decay: float) -> None:
        self._network, self._decay = network, decay
        self.tensors: dict[str, Tensor] = {}

    @property
    def is_on(self) -> bool:
        """Whether the weights are averaged at all."""
        return self._decay > 0

    def update(self, step: int) -> None:
        """Follow the network after a step, numbered from 0."""
        if not self.is_on:
            return
        learned = self._network.learned()
        if not self.tensors:
            self.tensors = {name: tensor.detach().clone() for name, tensor in learned.items()}
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        for name, tensor in learned.items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor.detach(), share)
            else:
                self.tensors[name].copy_(tensor)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have the network compute with the average for a while."""
        if not self.tensors:
            yield
            return
        own = {name: tensor.detach().clone() for name, tensor in self._network.learned().items()}
        with torch.no_grad():
            self._network.load_learned(self.tensors)
            yield
            self._network.load_learned(own)
