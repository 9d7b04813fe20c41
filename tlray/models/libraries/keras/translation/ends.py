"""How the graph of a Keras model begins and ends: whether it scales images itself, and whether it ends with a classifier."""

import math
from dataclasses import dataclass, replace
from typing import Any

from tlray.models.libraries.keras.translation.layers.activations import activation_of

_PASSES = ("Activation", "Softmax", "Dropout", "Identity", "Flatten", "Reshape")
"""Layers after a classifier's scores that give no others, but perhaps what the scores are as probabilities."""

_FORMS = ("Dropout", "Identity", "Flatten", "Reshape")
"""Layers before a classifier that leave a vector what it is."""


@dataclass(frozen=True)
class Ending:
    """How a network's graph ends: with a classifier or with features.

    Attributes:
        tap: the layer that gives the classifier its features; the last layer where there is none.
        is_classifier: whether it ends with a dense layer, or a convolution of one position, and no more than softmax or sigmoid
            after it.
        activation: what is applied to the scores: `linear`, `softmax` or `sigmoid`.
    """

    tap: str
    is_classifier: bool
    activation: str = "linear"


def function_of(model: Any) -> Any:
    """The graph of a model of Keras, as of a layer that is one; None where it has none."""
    if hasattr(model, "_nodes_by_depth"):
        return model
    return getattr(model, "_functional", None)  # of a sequential one that is built


def torch_name(name: str) -> str:
    """A layer's name without dots, which lead to layers within layers in torch."""
    return name.replace(".", "_")


def ending_of(function: Any) -> Ending:
    """Find the classifier of a graph, from its first output backwards.

    Args:
        function: of `function_of`.
    """
    output, activation = function.outputs[0], "linear"
    without = Ending(_name(output), is_classifier=False)
    at = output
    while True:
        operation = at._keras_history.operation
        if (inner := function_of(operation)) is not None:
            ending = ending_of(inner)
            applied = ending.activation if activation == "linear" else activation
            return replace(ending, tap=f"{_name(at)}.{ending.tap}", activation=applied)
        here = "softmax" if type(operation).__name__ == "Softmax" else activation_of(operation)
        if here != "linear":
            if activation != "linear" or here not in ("softmax", "sigmoid"):
                return without
            activation = here
        if _is_linear(operation, at):
            return Ending(_features(_parents(at)[0]), is_classifier=True, activation=activation)
        if type(operation).__name__ not in _PASSES or len(_parents(at)) != 1:
            return without
        (at,) = _parents(at)


def _is_linear(operation: Any, output: Any) -> bool:
    """Whether a layer gives one score of each class an image."""
    kind, rank = type(operation).__name__, len(output.shape)
    return (kind == "Dense" and rank == 2) or (kind == "Conv2D" and tuple(output.shape[1:3]) == (1, 1))


def _features(at: Any) -> str:
    """The layer that computes a vector, or what is flattened to one."""
    while type(at._keras_history.operation).__name__ in _FORMS and len(_parents(at)) == 1 and _is_vector(_parents(at)[0]):
        (at,) = _parents(at)
    return _name(at)


def _is_vector(tensor: Any) -> bool:
    sizes = tensor.shape[1:]
    return None not in sizes and math.prod(sizes) == max(sizes)


def _parents(tensor: Any) -> list[Any]:
    history = tensor._keras_history
    return list(history.operation._inbound_nodes[history.node_index].input_tensors)


def _name(tensor: Any) -> str:
    return torch_name(str(tensor._keras_history.operation.name))


_SCALES = ("Rescaling", "Normalization", "TrueDivide", "Divide", "Subtract", "Multiply", "GetItem")
"""Layers, and the operators that a call of `preprocess_input` leaves in a graph."""

_AUGMENTS = ("Random", "Identity", "Cast", "InputLayer")
"""Beginnings of the names of layers that leave the scale of an image as it is."""


def scaling_layers(function: Any, value: Any = None) -> list[str]:
    """Names of the first layers of a graph that scale what it takes; none where one of the first does something else.

    Args:
        function: of `function_of`.
        value: what is scaled; None for the graph's input.
    """
    names = []
    for node in _users(function, function.inputs[0] if value is None else value):
        if not (found := _scaling(function, node)):
            return []
        names += found
    return names


def _scaling(function: Any, node: Any) -> list[str]:
    operation, inner = node.operation, function_of(node.operation)
    if type(operation).__name__ in _SCALES:
        return [str(operation.name)]
    if inner is not None and (found := scaling_layers(inner)):
        return found
    is_passed = _augments(operation) if inner is None else all(_augments(one) for one in inner.operations)
    return scaling_layers(function, node.outputs[0]) if is_passed else []


def _augments(operation: Any) -> bool:
    return type(operation).__name__.startswith(_AUGMENTS)


def _users(function: Any, tensor: Any) -> list[Any]:
    nodes = [node for nodes in function._nodes_by_depth.values() for node in nodes]
    return [node for node in nodes if not node.is_input and any(one is tensor for one in node.input_tensors)]
