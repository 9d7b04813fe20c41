"""Random weights under which a network's embeddings tell images apart, for tests where trained ones cannot be downloaded.

A library's own initialisation often does not: zeroed residual branches, layer scales of 1e-6, and batch norms that, with
statistics of no data, let activations vanish.
"""

import torch
from torch import nn


def enliven(module: nn.Module, images_BCHW: torch.Tensor) -> nn.Module:
    """Draw the scales and shifts anew, give linear layers enough gain, and take batch norm statistics from images."""
    generator = torch.Generator().manual_seed(7)
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = name != "bias" and (parameter.ndim == 1 or parameter.abs().max() <= 1e-3)
            with torch.no_grad():
                if isinstance(layer, (nn.Conv2d, nn.Linear)) and parameter.ndim > 1:
                    parameter.copy_(noise * (2 / parameter[0].numel()) ** 0.5)
                elif is_scale:
                    parameter.copy_(1 + 0.2 * noise)
                else:
                    parameter.add_(0.1 * noise)
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    module.eval()
    for norm in norms:
        norm.train()
        norm.momentum = None
        norm.reset_running_stats()
    with torch.no_grad():
        module(images_BCHW)
    return module.eval()
