"""Layers with weights: torch's, with the values that Keras' have.

Shape legend: C channels, H height, W width; O, I, K, L a kernel's outputs, inputs, height and width; M outputs of each input.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from tlray.models.libraries.keras.translation.layers import modules
from tlray.models.libraries.keras.translation.layers.activations import with_activation

Layer = Any
"""A layer of Keras that is built."""


def convolution(layer: Layer, _ranks: Sequence[int]) -> nn.Module | None:
    """Translate Keras' `Conv2D`."""
    if layer.rank != 2:
        return None
    return with_activation(layer, 4, convolution=_conv(layer, _kernel(layer), layer.groups, _bias(layer), layer.strides))


def depthwise(layer: Layer, _ranks: Sequence[int]) -> nn.Module | None:
    """Translate Keras' `DepthwiseConv2D`."""
    if layer.rank != 2:
        return None
    return with_activation(layer, 4, convolution=_depthwise(layer, _tensor(layer.kernel), _bias(layer)))


def separable(layer: Layer, _ranks: Sequence[int]) -> nn.Module | None:
    """Translate Keras' `SeparableConv2D`."""
    if layer.rank != 2:
        return None
    by_channel = _depthwise(layer, _tensor(layer.depthwise_kernel), None)
    pointwise = _conv(layer, _tensor(layer.pointwise_kernel), 1, _bias(layer), (1, 1))
    return with_activation(layer, 4, depthwise=by_channel, pointwise=pointwise)


def dense(layer: Layer, ranks: Sequence[int]) -> nn.Module | None:
    """`Dense`: a linear layer, on maps a convolution of one position."""
    if layer.quantization_mode is not None:
        return None
    is_map, weight_OI, bias_O = ranks[0] == 4, _kernel(layer).T, _bias(layer)
    outputs, inputs = weight_OI.shape
    with torch.device("meta"):
        linear = nn.Conv2d(inputs, outputs, 1) if is_map else nn.Linear(inputs, outputs)
    _fill(linear, weight=weight_OI[..., None, None] if is_map else weight_OI, bias=bias_O)
    return with_activation(layer, ranks[0], linear=linear)


def batch_norm(layer: Layer, ranks: Sequence[int]) -> nn.Module | None:
    """`BatchNormalization` of maps and vectors, with Keras' epsilon and momentum."""
    rank = ranks[0]
    if rank not in (2, 4) or layer.axis not in (-1, rank - 1) or getattr(layer, "renorm", False):
        return None
    mean_C, variance_C = _tensor(layer.moving_mean), _tensor(layer.moving_variance)
    norm = (nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d)(len(mean_C), eps=layer.epsilon, momentum=1 - layer.momentum)
    values = {"running_mean": mean_C, "running_var": variance_C}
    values |= {"weight": _tensor(layer.gamma)} if layer.scale else {}
    values |= {"bias": _tensor(layer.beta)} if layer.center else {}
    norm.load_state_dict(values, strict=False)
    return norm


def layer_norm(layer: Layer, ranks: Sequence[int]) -> nn.Module | None:
    """Translate Keras' `LayerNormalization` over the last dimension."""
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    if axes not in ([-1], [ranks[0] - 1]) or getattr(layer, "rms_scaling", False) or not layer.scale:
        return None
    weight_C, bias_C = _tensor(layer.gamma), _tensor(layer.beta) if layer.center else None
    with torch.device("meta"):
        norm = (modules.ChannelNorm if ranks[0] == 4 else nn.LayerNorm)(len(weight_C), eps=layer.epsilon)
    return _fill(norm, weight=weight_C, bias=bias_C)


def layer_scale(layer: Layer, ranks: Sequence[int]) -> nn.Module:
    """Translate `LayerScale` of Keras' ConvNeXt."""
    return modules.Scale(_tensor(layer.gamma), ranks[0])


def _depthwise(layer: Layer, kernel_KLCM: Tensor, bias_O: Tensor | None) -> nn.Module:
    return _conv(layer, kernel_KLCM.flatten(2)[:, :, None], kernel_KLCM.shape[2], bias_O, layer.strides)


def _conv(layer: Layer, kernel_KLIO: Tensor, groups: int, bias_O: Tensor | None, strides: Sequence[int]) -> nn.Module:
    """A convolution, padded as TensorFlow does it: one more at the right and the bottom, where that is not even."""
    weight_OIKL = kernel_KLIO.permute(3, 2, 0, 1)
    outputs, inputs, height, width = weight_OIKL.shape
    rows, columns = ((rate * (size - 1)) for size, rate in zip((height, width), layer.dilation_rate, strict=True))
    reach = rows, columns
    is_same = layer.padding == "same"
    is_uneven = is_same and any(far and (far % 2 or stride > 1) for far, stride in zip(reach, strides, strict=True))
    with torch.device("meta"):
        convolution = (Conv2dSame if is_uneven else nn.Conv2d)(
            inputs * groups,
            outputs,
            (height, width),
            stride=(strides[0], strides[1]),
            padding=(rows // 2, columns // 2) if is_same and not is_uneven else 0,
            dilation=tuple(layer.dilation_rate),
            groups=groups,
        )
    return _fill(convolution, weight=weight_OIKL, bias=bias_O)


def _fill(module: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """Give a layer its parameters. It was made on the meta device, as what torch draws for it is not needed."""
    for name, tensor in tensors.items():
        setattr(module, name, None if tensor is None else nn.Parameter(tensor.contiguous()))
    return module


def _kernel(layer: Layer) -> Tensor:
    """With what LoRA adds to it, where there is some: then it is no variable."""
    kernel: Tensor = getattr(layer.kernel, "value", layer.kernel)
    return kernel.detach().float()


def _bias(layer: Layer) -> Tensor | None:
    return _tensor(layer.bias) if layer.use_bias else None


def _tensor(variable: Any) -> Tensor:
    """The values of a variable of Keras, float32."""
    value: Tensor = variable.value
    return value.detach().float()
