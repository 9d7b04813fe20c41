"""Random weights under which a network's embeddings tell images apart, for tests where trained ones cannot be downloaded.

A library's own initialisation often does not: zeroed residual branches, layer scales of 1e-6, and batch norms that, with
statistics of no data, let activations vanish.
"""

import torch
from torch import nn


def enliven(module: nn.Module, images_BCHW: torch.Tensor) -> nn.Module:
    """Draw the scales and shifts anew, give linear layers enough gain, and take batch norms' variances from images.

    Their means stay 0: subtracting what all images share makes a random network amplify rounding errors (Inception to a
    cosine of 0.98 at bf16 with nothing but torchvision).
    """
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
                elif parameter.ndim == 1:
                    parameter.add_(0.1 * noise)

    def calibrate(norm: nn.Module, arguments: tuple[torch.Tensor]) -> None:
        (x_BCHW,) = arguments
        norm.running_mean.zero_()
        norm.running_var.copy_(x_BCHW.square().mean((0, *range(2, x_BCHW.ndim))))

    module.eval()
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    handles = [norm.register_forward_pre_hook(calibrate) for norm in norms]
    with torch.no_grad():
        module(images_BCHW)
    for handle in handles:
        handle.remove()
    return module
