"""From pixels to what a network takes.

Shape legend: B images, H height, W width, C channels, R numbers of a row of pixels.
"""

import torch
from torch import Tensor

from tlray.recipe import UNIT_SCALE, Preprocessing


def to_network_input(images_BHWC: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Bring pixels to what the network takes, on their own device, in fp32: (x * scale - mean) / std.

    Args:
        images_BHWC: uint8, RGB.
        preprocessing: for channels, scale, mean and std.

    Returns:
        images_BCHW, float32, channels in the recipe's order; from contiguous images in channels_last layout.
    """
    if preprocessing.channels == "bgr":
        images_BHWC = images_BHWC.flip(3)
    # Whole rows at a time: torch has no vector instructions for three values that repeat.
    width = images_BHWC.shape[2]
    mean_R = torch.tensor(preprocessing.mean, device=images_BHWC.device).repeat(width)
    std_R = torch.tensor(preprocessing.std, device=images_BHWC.device).repeat(width)
    rows_BHR = _scaled(images_BHWC.flatten(2), preprocessing.scale)
    return rows_BHR.sub_(mean_R).div_(std_R).view(images_BHWC.shape).permute(0, 3, 1, 2)


def to_network_input_of_graph(images_BHWC: Tensor, preprocessing: Preprocessing) -> Tensor:
    """As `to_network_input`, in an order that engines beside torch run faster.

    They move the axes of bytes instead of floats, and take the one factor into the weights of the convolution that follows.
    Torch does neither.

    Args:
        images_BHWC: likewise.
        preprocessing: likewise.

    Returns:
        images_BCHW, float32.
    """
    if preprocessing.channels == "bgr":
        images_BHWC = images_BHWC.flip(3)
    low, high = preprocessing.scale
    levels = 255 / (high - low)  # of a unit of the scale
    shift_C11 = torch.tensor([(mean - low) * levels for mean in preprocessing.mean]).view(3, 1, 1)
    factor_C11 = torch.tensor([1 / (levels * std) for std in preprocessing.std]).view(3, 1, 1)
    return (images_BHWC.permute(0, 3, 1, 2).float() - shift_C11) * factor_C11


def _scaled(rows_BHR: Tensor, scale: tuple[float, float]) -> Tensor:
    """Levels in 0..255 as float32 in a scale; a tensor of its own."""
    low, high = scale
    if scale == UNIT_SCALE:
        return rows_BHR / 255
    return (rows_BHR * ((high - low) / 255)).add_(low)
