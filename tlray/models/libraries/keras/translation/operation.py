"""What Keras itself computes of a network, because torch has no layer of the kind: custom arithmetic, attention, resizing.

Shape legend: B images.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tlray.models.libraries.keras.runtime import Keras
from tlray.models.libraries.keras.translation.network import from_keras, to_keras


class KerasOperation(nn.Module):
    """An operation of Keras as a layer of torch's: with its weights as parameters, on any device.

    It computes as Keras does for predictions, in training too.

    Args:
        keras: the package.
        operation: built.
        arguments: of its call in the graph of a model, where values are symbols.
    """

    def __init__(self, keras: Keras, operation: Any, arguments: Any) -> None:
        super().__init__()
        trained = list(getattr(operation, "trainable_variables", ()))
        others = list(getattr(operation, "non_trainable_variables", ()))
        self._counts = len(trained), len(others)
        for number, variable in enumerate(trained):
            self.register_parameter(f"weight_{number}", nn.Parameter(_values(variable)))
        for number, variable in enumerate(others):
            self.register_buffer(f"constant_{number}", _values(variable))
        self._shared = _Shared(keras, operation, arguments)

    def forward(self, *values: Tensor) -> Tensor | tuple[Tensor, ...]:
        """B rows to B rows; maps have their channels first."""
        keras, operation = self._shared.keras, self._shared.operation
        args, kwargs = self._shared.filled([to_keras(value) for value in values])
        with keras.device(str(values[0].device)):
            if any(self._counts):
                weights = [getattr(self, f"weight_{number}") for number in range(self._counts[0])]
                constants = [getattr(self, f"constant_{number}") for number in range(self._counts[1])]
                results, _ = operation.stateless_call(weights, constants, *args, **kwargs)
            else:
                results = operation(*args, **kwargs)
        flat = [from_keras(value) for value in keras.tree.flatten(results)]
        return flat[0] if len(flat) == 1 else tuple(flat)


def _values(variable: Any) -> Tensor:
    """The values of a variable of Keras; float32 where it is not of whole numbers."""
    values: Tensor = variable.value.detach().clone()
    return values.float() if values.is_floating_point() else values


class _Shared:
    """What copies of a layer share: an operation of Keras keeps nothing between calls that are without state."""

    def __init__(self, keras: Keras, operation: Any, arguments: Any) -> None:
        self.keras, self.operation = keras, operation
        self._arguments = arguments

    def __deepcopy__(self, _memo: dict[int, Any]) -> "_Shared":
        return self

    def filled(self, values: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call, with values in place of symbols."""
        following = iter(values)
        symbol = self.keras.KerasTensor

        def fill(one: Any) -> Any:
            return next(following) if isinstance(one, symbol) else one

        mapped: Callable[..., Any] = self.keras.tree.map_structure
        args, kwargs = mapped(fill, (self._arguments.args, self._arguments.kwargs))
        return args, kwargs
