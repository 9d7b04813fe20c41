"""Layers with weights as oneDNN runs them best on a CPU: these laid out once, the activation in the same pass over memory.

Torch by itself lays the weights out anew in each call, writes each layer's output and reads it again for the activation, copies
the input for TensorFlow's "same" padding, and has MKL multiply at fp32, which is slower on some processors. These are the
operations that `torch.compile` takes on a CPU, called without a compiler.

Shape legend: B images, C channels, H height, W width; O, I, K, L a kernel's outputs, inputs, height and width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from timm.layers.activations import GELU
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import get_same_padding
from torch import Tensor, nn
from torch.nn.functional import pad

from tlray.models.encoder.network.folding import CONVOLUTIONS, gives_the_same, share_copy
from tlray.models.encoder.network.pairs import Embed, find_pairs

Activation = tuple[str, list[float], str]
"""As oneDNN's operations take it: name, numbers, algorithm."""

NO_ACTIVATION: Activation = ("none", [], "")

PACKED_BATCH = 8
"""Images that the weights' layout is chosen for; other batches compute the same."""

_ACTIVATIONS: dict[type[nn.Module], Callable[[nn.Module], Activation]] = {
    nn.ReLU: lambda _: ("relu", [], ""),
    nn.ReLU6: lambda _: ("hardtanh", [0.0, 6.0], ""),
    nn.Hardtanh: lambda layer: ("hardtanh", [float(layer.min_val), float(layer.max_val)], ""),  # type: ignore[arg-type]
    nn.SiLU: lambda _: ("swish", [], ""),
    nn.Hardswish: lambda _: ("hardswish", [], ""),
    nn.GELU: lambda layer: ("gelu", [], str(layer.approximate)),
    GELU: lambda _: ("gelu", [], "none"),
}
"""Exact types, with torch's own mapping (`torch/_inductor/fx_passes/mkldnn_fusion.py`)."""


class PackedConvolution(nn.Module):
    """A convolution and the activation after it.

    Args:
        layer: one of CONVOLUTIONS; its weights' type is the one that it computes in, its bias stays as it is.
        input_shape: BCHW of what goes in; only B may differ later.
        activation: after it.
    """

    packed: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d, input_shape: Sequence[int], activation: Activation) -> None:
        super().__init__()
        weight_OIKL, padding = _weight_and_padding(layer, input_shape[2:])
        self._dtype = weight_OIKL.dtype
        self._geometry = (padding, list(layer.stride), list(layer.dilation), layer.groups)
        self._activation = activation
        weight_OIKL = weight_OIKL.contiguous(memory_format=torch.channels_last)
        shape = [PACKED_BATCH, *input_shape[1:]]
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight_OIKL, *self._geometry, shape)
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """BCHW to BCHW, of the weights' type."""
        x = x.to(self._dtype)
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(x, self.packed, self.bias, *self._geometry, *self._activation)
        return output


class PackedLinear(nn.Module):
    """A linear layer and the activation after it.

    Args:
        layer: its weights' type is the one that it computes in, its bias stays as it is.
        input_shape: of what goes in; only the first may differ later.
        activation: after it.
    """

    packed: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear, input_shape: Sequence[int], activation: Activation) -> None:
        super().__init__()
        weight_OI = layer.weight.detach()
        self._dtype = weight_OI.dtype
        self._activation = activation
        rows = PACKED_BATCH * prod(input_shape[1:-1])
        self.register_buffer("packed", torch.ops.mkldnn._reorder_linear_weight(weight_OI, rows), persistent=False)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Of the weights' type."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self._dtype), self.packed, self.bias, *self._activation)
        return output


@dataclass(frozen=True)
class Packable:
    """A layer that runs once in a pass.

    Attributes:
        name: of the layer.
        input_shape: of what goes in.
        activation: name of the one after it, where there is one that oneDNN has.
    """

    name: str
    input_shape: tuple[int, ...]
    activation: str | None


def find_packable(module: nn.Module, taps: Sequence[str], embed: Embed) -> list[Packable]:
    """The layers that `pack` can pack; none where the features then come out differently.

    Args:
        module: on the CPU, in eval mode, folded, fp32: at 16 bits rounding would hide a difference.
        taps: the recipe's.
        embed: the taps' features of one image or more, by a module like this one.
    """
    if not torch.backends.mkldnn.is_available() or not any(map(_is_packable, module.modules())):  # type: ignore[no-untyped-call]
        return []
    with torch.inference_mode():
        seen = find_pairs(module, taps, embed, _is_packable, lambda layer: type(layer) in _ACTIVATIONS)
        activations = dict(seen.pairs)
        found = [Packable(name, shape, activations.get(name)) for name, shape in seen.input_shapes.items()]
        # Where a function uses what comes before an activation too, all of them alone; where one uses the weights of a linear
        # layer itself, convolutions alone.
        alone = [replace(each, activation=None) for each in found]
        convolutions = [each for each in found if isinstance(module.get_submodule(each.name), nn.Conv2d)]
        ways = (found, alone, convolutions, [replace(each, activation=None) for each in convolutions])
        for some in dict.fromkeys(map(tuple, ways)):  # in a network of convolutions alone two are what the others are
            packed = share_copy(module)
            pack(packed, some)
            if gives_the_same(seen.features, packed, embed):
                return list(some)
        return []


def pack(module: nn.Module, found: Sequence[Packable]) -> None:
    """Replace layers, with the activations after them, but those of a type that oneDNN does not compute here.

    Args:
        module: as `find_packable` had it, since lowered or not; changed.
        found: by it.
    """
    for each in found:
        layer = module.get_submodule(each.name)
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        if not _RUNS.get(layer.weight.dtype, bool)():
            continue
        activation = NO_ACTIVATION
        if each.activation is not None:
            after = module.get_submodule(each.activation)
            activation = _ACTIVATIONS[type(after)](after)
            module.set_submodule(each.activation, nn.Identity())
        shape = each.input_shape
        if isinstance(layer, nn.Linear):
            module.set_submodule(each.name, PackedLinear(layer, shape, activation))
        else:
            module.set_submodule(each.name, PackedConvolution(layer, shape, activation))


_RUNS: dict[torch.dtype, Callable[[], bool]] = {
    torch.float32: lambda: True,
    torch.bfloat16: lambda: bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    torch.float16: lambda: bool(torch.ops.mkldnn._is_mkldnn_fp16_supported()),
}


def _is_packable(layer: nn.Module) -> bool:
    if type(layer) is nn.Linear:
        return True
    if type(layer) not in CONVOLUTIONS:
        return False
    assert isinstance(layer, nn.Conv2d)
    if type(layer) is Conv2dSame:
        return layer.dilation == (1, 1)
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _weight_and_padding(layer: nn.Conv2d, size_HW: Sequence[int]) -> tuple[Tensor, list[int]]:
    """The weights, and the padding of each side.

    TensorFlow pads one more at the right and the bottom where the padding is odd. The same comes of a kernel with a row and a
    column of zeros before its own, and as much padding on the left and at the top.
    """
    weight_OIKL = layer.weight.detach()
    if type(layer) is not Conv2dSame:
        assert not isinstance(layer.padding, str)
        return weight_OIKL, list(layer.padding)
    rows, columns = (
        get_same_padding(size, kernel, stride, 1)
        for size, kernel, stride in zip(size_HW, layer.kernel_size, layer.stride, strict=True)
    )
    return pad(weight_OIKL, (columns % 2, 0, rows % 2, 0)), [-(-rows // 2), -(-columns // 2)]
