"""Finding layers that can become one, by watching what flows between them in one forward pass."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tlray.models.layers.taps import INPUT_SUFFIX

IsKind = Callable[[nn.Module], bool]

Embed = Callable[[nn.Module], dict[str, Tensor]]
"""The taps' features of a few images, by a module."""


@dataclass(frozen=True)
class Seen:
    """Which layers can become one, as one forward pass shows.

    Attributes:
        pairs: names of layers of the first kind and of the only layer that uses their output, of the second kind.
        input_shapes: of each layer of the first kind that runs exactly once.
        features: what the pass gave.
    """

    pairs: list[tuple[str, str]]
    input_shapes: dict[str, tuple[int, ...]]
    features: dict[str, Tensor]


class _Watch:
    """Hooks' notes. What passes through `nn.Identity` stays what it was; what is changed in place does not."""

    def __init__(self, taps: Sequence[str], is_first: IsKind) -> None:
        self.taps = taps
        self.is_first = is_first
        self.calls: Counter[str] = Counter()
        self.users: dict[str, list[str | None]] = {}  # None: of what it has become
        self.tapped: set[str] = set()
        self.input_shapes: dict[str, tuple[int, ...]] = {}
        self._makers: dict[int, tuple[str, int]] = {}  # by a tensor's identity: the layer, and the version that it made
        self._held: list[Tensor] = []  # so that no other tensor takes their identity

    def enter(self, name: str, is_user: bool, layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.calls[name] += 1
        values = [*arguments, *keywords.values()]
        made = [(value, *self._makers[id(value)]) for value in values if id(value) in self._makers]
        if name + INPUT_SUFFIX in self.taps:
            self.tapped.update(maker for _, maker, _ in made)
        if is_user and not isinstance(layer, nn.Identity):
            for value, maker, version in made:
                self.users[maker].append(name if value._version == version else None)
        if self.is_first(layer) and isinstance(values[0], Tensor):
            self.input_shapes[name] = tuple(values[0].shape)

    def leave(self, name: str, is_user: bool, layer: nn.Module, _arguments: tuple[Any, ...], output: object) -> None:
        if is_user and not isinstance(layer, nn.Identity):
            self._makers.pop(id(output), None)
        if self.is_first(layer) and isinstance(output, Tensor):
            self._makers[id(output)] = (name, output._version)
            self._held.append(output)
            self.users.setdefault(name, [])
        if name in self.taps and id(output) in self._makers:
            self.tapped.add(self._makers[id(output)][0])


def find_pairs(module: nn.Module, taps: Sequence[str], embed: Embed, is_first: IsKind, is_second: IsKind) -> Seen:
    """Find the layers of two kinds that can become one, by watching a forward pass.

    A pair is two layers that both run once, where what the first puts out goes into the second alone, unchanged (timm's ResNets
    add the shortcut in place), and is no tap's. No hook sees a function that uses it too: the caller compares the features
    before and after.

    Args:
        module: in eval mode; it has its hooks for this pass only.
        taps: the recipe's.
        embed: the taps' features, by such a module.
        is_first: whether a layer can be a pair's first.
        is_second: likewise.
    """
    watch = _Watch(taps, is_first)
    layers = dict(module.named_modules())
    handles = []
    for name, layer in layers.items():
        is_user = not any(layer.children()) or is_second(layer)
        handles.append(layer.register_forward_pre_hook(partial(watch.enter, name, is_user), with_kwargs=True))
        handles.append(layer.register_forward_hook(partial(watch.leave, name, is_user)))
    try:
        with torch.inference_mode(False), torch.no_grad():  # tensors of inference mode have no versions
            features = embed(module)
    finally:
        for handle in handles:
            handle.remove()
    candidates = [(name, users[0]) for name, users in watch.users.items() if len(users) == 1 and name not in watch.tapped]
    once = [(one, two) for one, two in candidates if two is not None and watch.calls[one] == watch.calls[two] == 1]
    return Seen(
        [(one, two) for one, two in once if is_second(layers[two])],
        {name: shape for name, shape in watch.input_shapes.items() if watch.calls[name] == 1},
        features,
    )
