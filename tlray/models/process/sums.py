"""Products and convolutions of 16 bits, computed at fp32 on devices that have no arithmetic for them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_aten = torch.ops.aten

_SUMS = {
    *(_aten.conv1d, _aten.conv2d, _aten.conv3d, _aten.convolution, _aten._convolution),
    *(_aten.linear, _aten.matmul, _aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _aten.einsum),
    *(
        _aten.scaled_dot_product_attention,
        _aten._scaled_dot_product_flash_attention_for_cpu,
        _aten._native_multi_head_attention,
    ),
}
"""What `torch.autocast` computes at 16 bits, of a network that goes forward."""


class SumsAtFp32(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Take, hold and give 16 bits, but sum at fp32: the numbers of devices with arithmetic of 16 bits, which sum so too.

    Torch's own kernels for CPUs without such arithmetic give the same, in dozens of times the time (docs/benchmarks.md).
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled within it: torch would else import its compiler here, which takes longer than torch itself."""
        return False

    def __torch_dispatch__(
        self, operation: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation of torch's; see `torch.utils._python_dispatch`."""
        kwargs = kwargs or {}
        if operation.overloadpacket not in _SUMS:
            return operation(*args, **kwargs)
        narrow = next((each.dtype for each in tree_leaves(args) if _is_narrow(each)), None)
        if narrow is None:
            return operation(*args, **kwargs)
        result = operation(*tree_map_only(_is_narrow, Tensor.float, args), **tree_map_only(_is_narrow, Tensor.float, kwargs))
        return tree_map_only(Tensor, lambda each: each.to(narrow), result)


def _is_narrow(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
