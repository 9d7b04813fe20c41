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

    Drawing all that is then overwritten takes most of the time in which a network is built. A parameter that nothing overwrites
    is not a number, and neither is what is computed of it, so that it cannot pass for weights. Other tensors, and parts of
    parameters, are drawn as ever.
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
                    return tensor if name in _OF_DRAWN else tensor.fill_(torch.nan)
        return func(*args, **kwargs)
