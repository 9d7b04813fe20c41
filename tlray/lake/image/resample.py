"""Resample a part of a picture to any size, by the filter that the preprocessing names.

Bilinear and bicubic with antialiasing, the filters that nearly all weights were evaluated with, are torch's for uint8, which
are faster; the others are Pillow's. Torch's are what torchvision's transforms compute on uint8 tensors: Pillow's own filters
in 16-bit integers, with the two passes in whichever order is quicker. The two libraries differ by 1 or 2 levels in some pixels,
and neither is nearer to the unrounded result. Torch's levels are the same on every machine, with AVX2 or without.

Shape legend: B images, H height, W width, C channels (3, or Pillow's 4 with one unused).
"""

import numpy as np
import pyarrow as pa
from PIL import Image

from tlray.recipe import Interpolation, Preprocessing

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a picture, in its pixels."""

RgbImage = Image.Image | np.ndarray
"""An RGB image of Pillow, or pixels_HWC, uint8 RGB, C-contiguous."""

_FILTERS: dict[Interpolation, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_OF_TORCH: tuple[Interpolation, ...] = ("bilinear", "bicubic")


def size_of(image: RgbImage) -> tuple[int, int]:
    """Width and height, in pixels."""
    return image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])


def is_by_torch(preprocessing: Preprocessing) -> bool:
    """Whether whole images are resampled by torch."""
    return preprocessing.antialias and preprocessing.interpolation in _OF_TORCH


def resample(image: RgbImage, size: tuple[int, int], box: Box, preprocessing: Preprocessing) -> np.ndarray:
    """Resample a box of an image to a size.

    Args:
        image: to resample.
        size: (width, height) of the result, in pixels.
        box: the part of the image that is resampled; torch's filters only take the whole image.
        preprocessing: names the filter, and says whether it is widened when shrinking.

    Returns:
        pixels_HWC, uint8, 3 channels, not always contiguous.
    """
    is_whole = box == (0, 0, *size_of(image))
    if size_of(image) == size and is_whole:
        return np.asarray(image)
    filter_, antialias = preprocessing.interpolation, preprocessing.antialias
    if is_by_torch(preprocessing) and is_whole:
        return _resample_by_torch(image, size, filter_)
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if antialias or filter_ == "nearest":
        return np.asarray(image.resize(size, _FILTERS[filter_], box))
    left, top, right, bottom = box
    scale_x, scale_y = (right - left) / size[0], (bottom - top) / size[1]
    # Pillow's transform cuts the fraction off instead of rounding, so levels lie half of one lower on average.
    coefficients = (scale_x, 0, left, 0, scale_y, top)
    return np.asarray(image.transform(size, Image.Transform.AFFINE, coefficients, _FILTERS[filter_]))


def _resample_by_torch(image: RgbImage, size: tuple[int, int], filter_: Interpolation) -> np.ndarray:
    import torch  # at the first image: planning and the command line do without its seconds
    from torch.utils.dlpack import from_dlpack

    if isinstance(image, np.ndarray):
        pixels_HWC = torch.from_numpy(image)
    else:
        try:
            pixels_HWC = from_dlpack(pa.array(image).flatten()).view(image.height, image.width, 4)  # no copy
        except ValueError:  # Pillow keeps pictures of over 16 MiB in pieces
            pixels_HWC = torch.from_numpy(np.array(image))
    # As a batch of one, before axes are moved: only so does torch see the order in memory that it is faster in.
    images_BCHW = pixels_HWC.view(1, *pixels_HWC.shape).permute(0, 3, 1, 2)
    resized_BCHW = torch.nn.functional.interpolate(
        images_BCHW, (size[1], size[0]), mode=filter_, align_corners=False, antialias=True
    )
    return resized_BCHW[0].permute(1, 2, 0)[..., :3].numpy()
