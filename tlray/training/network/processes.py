"""What the training loop asks of the processes that it runs in; `tlray.training.network.on_ray` has the one for several."""

from typing import Protocol

import torch
from torch import Tensor, nn

from tlray.models.process.device import choose_device


class World(Protocol):
    """Processes that train one network together.

    Attributes:
        rank: this one's number.
        size: how many there are.
        local_size: how many of them are on this machine.
        device: this one's.
    """

    rank: int
    size: int
    local_size: int
    device: torch.device

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network with gradients that are averaged over all processes."""
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors; changes the one given."""
        ...

    def gather_text(self, text: str) -> list[str]:
        """Gather the texts of all processes, in order of their numbers, in each of them."""
        ...


class Alone:
    """The world of a training in one process, without Ray."""

    rank, size, local_size = 0, 1, 1

    def __init__(self, device: str = "auto") -> None:
        self.device = choose_device(device)

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network as it is: its gradients are whole."""
        return network

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the tensor as it is: there is nothing to add."""
        return tensor

    def gather_text(self, text: str) -> list[str]:
        """Return the text of the only process."""
        return [text]
