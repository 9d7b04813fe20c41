"""Learning rates over time and depth, and when which blocks are trained."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from tlray.config import NetworkConfig

BACKBONE_RATE = 0.1
"""The learning rate of a pretrained backbone, as a factor of the head's rate: a new head has far to go, good features do not. A
rule of thumb (Howard and Ruder, ULMFiT, 2018, arXiv 1801.06146, go from layer to layer by 1/2.6)."""


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """What all learning rates are multiplied by: linear warm-up, then half a cosine down to nothing.

    Sources: Goyal et al. 2017 (arXiv 1706.02677) for the warm-up, Loshchilov and Hutter 2017 (arXiv 1608.03983, without its
    restarts) for the cosine.

    Args:
        step: from 0.
        steps: of the whole training.
        warmup: share of them.
    """
    warm = round(warmup * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def parameter_groups(
    head: nn.Module, module: nn.Module, blocks: Sequence[Sequence[str]], trained: frozenset[str], config: NetworkConfig
) -> list[dict[str, Any]]:
    """Groups for an optimiser, each with the `rate` that `rate_factor` is to multiply.

    Args:
        head: trained at `learning_rate`.
        module: the backbone: its last block is trained at `backbone_rate` times that, each one before it at `depth_decay`
            times the one after (Clark et al., ELECTRA, 2020, arXiv 2003.10555, section 3.1).
        blocks: its parameters, in order of execution.
        trained: of them, those that are ever trained.
        config: the rates. Weight decay leaves out vectors and scalars: biases and the scales of norms.
    """
    backbone_rate = config.backbone_rate or (1.0 if config.start == "scratch" else BACKBONE_RATE)
    parameters = dict(module.named_parameters())
    groups = _by_decay(head.parameters(), config.learning_rate, config)
    for depth, block in enumerate(reversed(blocks)):
        rate = config.learning_rate * backbone_rate * config.depth_decay**depth
        groups += _by_decay((parameters[name] for name in block if name in trained), rate, config)
    return groups


def _by_decay(parameters: Iterable[nn.Parameter], rate: float, config: NetworkConfig) -> list[dict[str, Any]]:
    listed = list(parameters)
    matrices = [parameter for parameter in listed if parameter.ndim > 1]
    vectors = [parameter for parameter in listed if parameter.ndim <= 1]
    groups = ((matrices, config.weight_decay), (vectors, 0.0))
    return [{"params": members, "rate": rate, "lr": rate, "weight_decay": decay} for members, decay in groups if members]


def blocks_in_training(epoch: int, blocks: int, unfreeze: int) -> int:
    """How many of the last blocks are trained in an epoch: none in the first one, all after `unfreeze` epochs.

    Gradual unfreezing, as Howard and Ruder (ULMFiT, 2018, section 3.3) have it.
    """
    return blocks if epoch >= unfreeze else blocks * epoch // unfreeze
