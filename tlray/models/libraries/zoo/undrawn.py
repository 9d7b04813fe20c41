"""Building networks whose weights come from elsewhere, without drawing random ones first."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_DRAWS = ("normal_", "uniform_", "kaiming_uniform_")
"""Of tensors and of `torch.nn.init`: those that other ways of drawing call, where torch lets a mode see them."""

_OF_DRAWN = ("erfinv_",)
"""What timm brings uniform numbers to normal ones by, which takes longer than to draw them."""


class Undrawn(TorchFunctionMode):
    """Within it, in this thread, parameters become not a number where a network's constructor would draw them.

    Drawing all that is then overwritten takes most of the time in which a network is built. What is computed of a parameter
    that nothing overwrites is not a number either, so that it cannot pass for weights, and `without_values` names it.
    Parameters that are drawn in parts or by way of other tensors are drawn as ever, and so are all other tensors.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by torch in place of each of its functions."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _DRAWS or name in _OF_DRAWN:
            tensor = args[0] if args else kwargs["tensor"]
            if isinstance(tensor, nn.Parameter):
                with torch.no_grad():
                    if name in _DRAWS:
                        return tensor.fill_(torch.nan)
                    if tensor.numel() and bool(tensor.flatten()[0].isnan()):
                        return tensor
        return func(*args, **kwargs)


def without_values(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of a network that are not numbers, as nothing was put into them."""
    return tuple(name for name, parameter in module.named_parameters() if bool(parameter.detach().sum().isnan()))
