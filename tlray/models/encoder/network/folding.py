"""Folding batch norms into the convolutions before them: the same numbers in exact arithmetic, fewer passes over memory."""

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TypeVar

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tlray.models.encoder.network.pairs import Embed, find_pairs

FOLD_TOLERANCE = 1e-4
"""Largest relative L2 distance of a tap's features after folding to those before, at fp32. Chosen, not derived: room for
rounding, which a deep network amplifies, and none for a folding that leaves out a channel's scale or shift."""

CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
_BATCH_NORMS = (nn.BatchNorm2d, BatchNormAct2d)
"""Exact types: subclasses may do more with their weights, as weight-standardised convolutions do."""

_ModuleT = TypeVar("_ModuleT", bound=nn.Module)


def share_copy(module: _ModuleT) -> _ModuleT:
    """A copy whose layers can be replaced while the original stays as it is; both hold the same tensors."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())})


def fold_batch_norms(module: nn.Module, taps: Sequence[str], embed: Embed) -> nn.Module:
    """Fold every batch norm that follows a convolution into it: W' = W g / sqrt(v + e), b' = (b - m) g / sqrt(v + e) + beta.

    Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018 (arXiv
    1712.05877), section 3.2; computed by `torch.nn.utils.fusion.fuse_conv_bn_eval` in fp32. A pair is folded where one forward
    pass shows that both layers run once and that the convolution's output goes into the batch norm alone and is no tap's.
    What no hook can see (a function that uses the output too) shows in the features: where they are not the same as before,
    nothing is folded.

    Args:
        module: in eval mode, fp32; not changed.
        taps: the recipe's.
        embed: the taps' features of a few images, by a module like this one.

    Returns:
        A copy, which shares with `module` all tensors but those of the folded layers.
    """
    folded = share_copy(module)
    if not any(_is_foldable(layer) for layer in module.modules()):
        return folded
    with torch.no_grad():
        seen = find_pairs(module, taps, embed, _is_convolution, _is_foldable)
        for convolution, batch_norm in seen.pairs:
            _fold(folded, convolution, batch_norm)
        if not seen.pairs or gives_the_same(seen.features, folded, embed):
            return folded
    return share_copy(module)


def _is_convolution(layer: nn.Module) -> bool:
    return type(layer) in CONVOLUTIONS


def _is_foldable(layer: nn.Module) -> bool:
    return type(layer) in _BATCH_NORMS and not layer.training and layer.running_mean is not None


def _fold(module: nn.Module, convolution: str, batch_norm: str) -> None:
    layer, norm = module.get_submodule(convolution), module.get_submodule(batch_norm)
    assert isinstance(layer, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    fused = fuse_conv_bn_eval(layer, norm)
    layer.weight, layer.bias = fused.weight, fused.bias
    rest = nn.Sequential(OrderedDict(drop=norm.drop, act=norm.act)) if isinstance(norm, BatchNormAct2d) else nn.Identity()
    module.set_submodule(batch_norm, rest.eval())


def gives_the_same(before: Mapping[str, Tensor], folded: nn.Module, embed: Embed) -> bool:
    """Whether a changed copy runs and gives the same features as before, to FOLD_TOLERANCE."""
    try:
        after = embed(folded)
    except (AttributeError, RuntimeError, TypeError):  # the network reads an attribute of a batch norm that is gone
        return False
    return all(bool((after[tap] - before[tap]).norm() <= FOLD_TOLERANCE * before[tap].norm()) for tap in before)
