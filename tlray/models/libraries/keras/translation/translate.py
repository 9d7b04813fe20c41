"""Making a network of a Keras model's graph, and holding it against Keras.

Shape legend: B images, C channels, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tlray.errors import BackboneError
from tlray.models.libraries.keras.runtime import Keras
from tlray.models.libraries.keras.translation.ends import Ending, ending_of, function_of, torch_name
from tlray.models.libraries.keras.translation.layers.make import make
from tlray.models.libraries.keras.translation.layers.modules import LogProbabilities
from tlray.models.libraries.keras.translation.network import ImageNetwork, Network, Step, from_keras, to_keras
from tlray.models.libraries.keras.translation.operation import KerasOperation

SCORES = "log_probabilities"
"""Name of the layer that is put after a classifier which ends in probabilities."""

TOLERANCE = 1e-3
"""Largest distance of a value from Keras' own, relative to the largest of them: room for rounding, which a deep network of
random weights amplifies, and none for another layer."""


@dataclass(frozen=True)
class Translation:
    """A Keras model as torch computes it.

    Attributes:
        module: from images_BCHW to the model's outputs, or to log-probabilities where its classifier ends in probabilities.
        ending: how it ends.
        has_classes: whether its output is a score of each class, of which an image has one.
        by_keras: names of the layers that torch has not, which Keras itself computes.
    """

    module: ImageNetwork
    ending: Ending
    has_classes: bool
    by_keras: Sequence[str]


def translate(keras: Keras, model: Any, images_BCHW: Tensor) -> Translation:
    """Make a torch network of a Keras model.

    Args:
        keras: the package.
        model: functional or sequential, built, with one input of images.
        images_BCHW: prepared, any: both compute them.

    Raises:
        BackboneError: it has no graph, is of channels first, or does not compute what Keras computes.
    """
    function = function_of(model)
    if function is None:
        raise BackboneError(
            f"the model {model.name!r} is code of a class ({type(model).__name__}), not a graph of layers, so its layers "
            "cannot be found; save it as a functional or a sequential model, or export it as ONNX"
        )
    walk = _Walk(keras)
    module = walk.network(function, ImageNetwork).eval()
    _check(keras, model, module, images_BCHW)
    ending = ending_of(function)
    is_single = tuple(function.outputs[0].shape[1:]) == (1,)
    has_classes = ending.is_classifier and len(function.outputs) == 1 and (ending.activation != "sigmoid" or is_single)
    if has_classes and ending.activation != "linear":
        module = module.followed_by(SCORES, LogProbabilities(ending.activation == "sigmoid")).eval()
    return Translation(module, ending, has_classes, tuple(walk.by_keras))


def _check(keras: Keras, model: Any, module: nn.Module, images_BCHW: Tensor) -> None:
    with torch.no_grad():
        expected = [from_keras(value) for value in keras.tree.flatten(model(to_keras(images_BCHW), training=False))]
        found = module(images_BCHW)
    for ours, theirs in zip([found] if isinstance(found, Tensor) else found, expected, strict=True):
        if ours.shape != theirs.shape or not (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max():
            raise BackboneError(
                f"torch's layers do not compute what Keras computes of the model {model.name!r}, so nothing is embedded; "
                "please report it, and export the model as ONNX meanwhile"
            )


_NetworkT = TypeVar("_NetworkT", bound=Network)

_Call = tuple[str, tuple[int, ...], tuple[int, ...]]
"""Name of a layer, and the numbers of the values that go in and come out."""


@dataclass
class _Walk:
    keras: Keras
    by_keras: list[str] = field(default_factory=list)

    def network(self, function: Any, kind: type[_NetworkT]) -> _NetworkT:
        """A network of a graph, of some kind, and of the graphs that are layers in it."""
        numbers: dict[int, int] = {}

        def numbered(tensors: Sequence[Any]) -> tuple[int, ...]:
            return tuple(numbers.setdefault(id(tensor), len(numbers)) for tensor in tensors)

        inputs = numbered(function.inputs)
        layers: dict[str, nn.Module] = {}
        names: dict[int, str] = {}
        calls: list[_Call] = []
        for node in _in_order(function):
            operation = node.operation
            if id(operation) not in names:
                names[id(operation)] = name = _free_name(torch_name(operation.name), layers)
                layers[name] = self._layer(node)
            calls.append((names[id(operation)], numbered(node.input_tensors), numbered(node.outputs)))
        outputs = numbered(function.outputs)
        try:
            return kind(list(layers.items()), _steps(calls, outputs), inputs, outputs)
        except KeyError as error:  # of `torch.nn.Module.add_module`
            raise BackboneError(
                f"the model {function.name!r} has a layer of a name that torch's modules have a use for ({error}): rename it, "
                "and save the model again"
            ) from error

    def _layer(self, node: Any) -> nn.Module:
        operation = node.operation
        if (inner := function_of(operation)) is not None:
            return self.network(inner, Network)
        if getattr(operation, "data_format", None) == "channels_first":
            raise BackboneError(
                f"layer {operation.name!r} has channels first (data_format); save the model with channels last, or export it "
                "as ONNX"
            )
        flat = self.keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
        arguments = [None if isinstance(one, self.keras.KerasTensor) else one for one in flat]
        ranks = [len(tensor.shape) for tensor in node.input_tensors]
        module = make(operation, ranks, arguments, is_operator=not isinstance(operation, self.keras.Layer))
        if module is None:
            self.by_keras.append(operation.name)
            module = KerasOperation(self.keras, operation, node.arguments)
        return module


def _in_order(function: Any) -> list[Any]:
    """The calls of a graph, in the order in which Keras runs them."""
    nodes = [node for depth in sorted(function._nodes_by_depth, reverse=True) for node in function._nodes_by_depth[depth]]
    return [node for node in nodes if node.operation is not None and not node.is_input]


def _free_name(name: str, taken: dict[str, nn.Module]) -> str:
    return next(one for one in (name, *(f"{name}_{number}" for number in range(1, len(taken) + 2))) if one not in taken)


def _steps(calls: Sequence[_Call], outputs: Sequence[int]) -> list[Step]:
    """The calls, each with what no later one needs."""
    needed, steps = set(outputs), []
    for name, taken, given in reversed(calls):
        spent = {*taken, *given} - needed
        needed |= spent
        steps.append(Step(name, taken, given, tuple(sorted(spent))))
    return steps[::-1]
