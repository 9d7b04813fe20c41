"""The network that a graph of Keras becomes: torch layers by Keras' names, run in Keras' order.

Inside it, maps have their channels first, as torch's layers take them; Keras' own have them last. `to_keras` and `from_keras`
lead from one to the other.

Shape legend: B images, C channels, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn


@dataclass(frozen=True)
class Step:
    """One call of a layer. Values are known by numbers.

    Attributes:
        layer: name of the layer.
        taken: what goes in.
        given: what comes out.
        spent: what no later step needs.
    """

    layer: str
    taken: tuple[int, ...]
    given: tuple[int, ...]
    spent: tuple[int, ...]


class Network(nn.Module):
    """Runs its layers one after the other, and keeps no value longer than a layer needs it.

    Args:
        layers: by their names, in the order of their first calls.
        steps: in order.
        taken: numbers of the values that the network takes.
        given: of those that it gives.

    Raises:
        KeyError: a layer has the name of an attribute of torch's modules.
    """

    def __init__(
        self, layers: Sequence[tuple[str, nn.Module]], steps: Sequence[Step], taken: Sequence[int], given: Sequence[int]
    ) -> None:
        super().__init__()
        self._steps, self._taken, self._given = tuple(steps), tuple(taken), tuple(given)
        for name, layer in layers:
            self.add_module(name, layer)

    def forward(self, *values: Tensor) -> Any:
        """One value, or a tuple of several, for as many as the network takes."""
        known: dict[int, Any] = dict(zip(self._taken, values, strict=True))
        for step in self._steps:
            layer = self._modules[step.layer]
            assert layer is not None
            results = layer(*[known[number] for number in step.taken])
            known.update(zip(step.given, [results] if len(step.given) == 1 else results, strict=True))
            for number in step.spent:
                del known[number]
        results = tuple(known[number] for number in self._given)
        return results if len(results) > 1 else results[0]

    def followed_by(self, name: str, layer: nn.Module) -> Self:
        """A network of the same layers, and one more that takes what this one gives."""
        added = -1  # no other value has this number
        steps = [*self._steps, Step(name, self._given, (added,), self._given)]
        return type(self)([*self.named_children(), (name, layer)], steps, self._taken, [added])


class ImageNetwork(Network):
    """One that takes images alone: tracing a network needs to know how many values it takes."""

    def forward(self, images_BCHW: Tensor) -> Any:  # type: ignore[override]
        """One value, or a tuple of several."""
        return super().forward(images_BCHW)


def to_keras(value: Tensor) -> Tensor:
    """A map as Keras has it, channels last; other values as they are."""
    return value.permute(0, 2, 3, 1) if value.ndim == 4 else value


def from_keras(value: Tensor) -> Tensor:
    """A map of Keras with its channels first; other values as they are."""
    return value.permute(0, 3, 1, 2) if value.ndim == 4 else value
