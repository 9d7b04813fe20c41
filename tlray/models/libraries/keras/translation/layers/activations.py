"""Keras' activation functions as torch's layers; Keras has them inside other layers, too."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import nn

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "hard_silu": nn.Hardswish,
    "hard_sigmoid": nn.Hardsigmoid,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}
"""By the names of Keras' functions, which have these defaults."""


def activation_of(layer: Any) -> str | None:
    """Name of the function that a layer of Keras applies in the end; None for one that has no name, `linear` without any."""
    function = getattr(layer, "activation", None)
    return "linear" if function is None else getattr(function, "__name__", None)


def activation(layer: Any, rank: int) -> nn.Module | None:
    """The torch layer of a Keras layer's activation; None where torch has none that computes the same.

    Args:
        layer: of Keras.
        rank: dimensions of its values, the batch's included.
    """
    name = activation_of(layer)
    if name == "softmax":
        return nn.Softmax(1 if rank == 4 else -1)
    return _ACTIVATIONS[name]() if name in _ACTIVATIONS else None


def with_activation(layer: Any, rank: int, **parts: nn.Module) -> nn.Module | None:
    """The torch layers of a Keras layer, and of the activation in it: by the layer's name comes what it puts out in the end.

    Args:
        layer: of Keras.
        rank: dimensions of its values.
        parts: by the names that they get within the layer.

    Returns:
        The only one; None where torch has not the activation.
    """
    after = activation(layer, rank)
    if after is None:
        return None
    named = OrderedDict(parts) if isinstance(after, nn.Identity) else OrderedDict(parts, activation=after)
    return nn.Sequential(named) if len(named) > 1 else next(iter(named.values()))
