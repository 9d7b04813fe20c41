"""Resize and crop an RGB image of any size to exactly the pixels that a backbone takes: the geometry of `Preprocessing`.

The geometry is that of torchvision's `ImageClassification` preset and of timm's evaluation transforms (crop modes center,
squash and border); the filters are in `tlray.lake.image.resample`. Subtracting the mean and dividing by the standard
deviation happen on the device.

Shape legend: H height, W width, C channels.
"""

from dataclasses import dataclass

import numpy as np

from tlray.errors import ConfigError
from tlray.lake.image.resample import Box, RgbImage, resample, size_of
from tlray.recipe import CropOffset, Interpolation, Preprocessing

WITHOUT_ANTIALIAS: tuple[Interpolation, ...] = ("nearest", "bilinear")
"""Filters that `antialias=False` is defined for. Pillow's unwidened bicubic has another kernel (a = -1) than torch's
(a = -0.75), and the others exist only as widened filters."""

WHOLE_RESIZE_MAX_PIXELS = 2**26
"""Above this (256 MiB of memory) only the part that the crop keeps is resampled. `cover` makes 256 x 12800000 of a
picture of 10 x 500000. Pillow takes the part's bounds as 32-bit floats, so its pixels may be a level off."""


@dataclass(frozen=True, slots=True)
class Original:
    """The original of an image that was shrunk while it was decoded (`tlray.lake.image.scaled_decoding`).

    Attributes:
        size: (width, height) of the original as shown, in pixels.
        box: the part of the shrunk image that the original covers.
    """

    size: tuple[int, int]
    box: Box

    @classmethod
    def unshrunk(cls, size: tuple[int, int]) -> "Original":
        """Of an image that is its own original."""
        return cls(size, (0.0, 0.0, *size))


def check_preprocessing(preprocessing: Preprocessing) -> None:
    """Refuse a geometry that cannot be carried out; called once, before any image.

    Raises:
        ConfigError: a side under one pixel, a fill that is no colour, `antialias=False` with a filter that lacks it, or
            scaled decoding of pictures that are to be sampled and not averaged.
    """
    for name in ("resize", "crop"):
        sides = getattr(preprocessing, name)
        if sides is not None and min(sides) < 1:
            raise ConfigError(f"preprocessing.{name} is {sides}; expected (height, width) of at least one pixel each")
    if not all(0 <= level <= 255 for level in preprocessing.fill):
        raise ConfigError(f"preprocessing.fill is {preprocessing.fill}; expected three levels within 0..255")
    if not preprocessing.antialias and preprocessing.interpolation not in WITHOUT_ANTIALIAS:
        raise ConfigError(
            f"preprocessing.antialias is false with interpolation {preprocessing.interpolation}; "
            f"only {' and '.join(WITHOUT_ANTIALIAS)} can sample without it: choose one of these, or antialias true"
        )
    if preprocessing.scaled_decoding and (not preprocessing.antialias or preprocessing.interpolation == "nearest"):
        raise ConfigError(
            f"preprocessing.scaled_decoding is true with interpolation {preprocessing.interpolation} and antialias "
            f"{str(preprocessing.antialias).lower()}, but averages pixels that these only sample: choose another filter with "
            "antialias true, or scaled_decoding false"
        )


def resized_size(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Size (width, height) in pixels after resizing and before cropping.

    Sources: torchvision's `_compute_resized_output_size` for the shortest side, timm's `ResizeKeepRatio.get_params` for
    the other boxes that keep the ratio. A side that would round to nothing, where timm fails, is one pixel.
    """
    if preprocessing.resize is None:
        return width, height
    box_height, box_width = preprocessing.resize
    if preprocessing.fit == "squash":
        return box_width, box_height
    if preprocessing.fit == "cover" and box_height == box_width:
        if width <= height:
            return box_width, int(box_width * height / width)
        return int(box_height * width / height), box_height
    choose = min if preprocessing.fit == "cover" else max
    ratio = choose(height / box_height, width / box_width)
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def apply_preprocessing(image: RgbImage, preprocessing: Preprocessing, original: Original | None = None) -> np.ndarray:
    """Resize, then crop from the centre or pad.

    Args:
        image: to bring to the crop's size.
        preprocessing: one that `check_preprocessing` accepts.
        original: of an image that was shrunk while it was decoded; it becomes what its original would.

    Returns:
        pixels_HWC, uint8, C-contiguous, read-only, of the size of `preprocessing.crop`.
    """
    crop_height, crop_width = preprocessing.crop
    original = original or Original.unshrunk(size_of(image))
    width, height = resized_size(*original.size, preprocessing)
    offset = preprocessing.crop_offset
    left, top = _crop_offset(width, crop_width, offset), _crop_offset(height, crop_height, offset)
    if width * height > WHOLE_RESIZE_MAX_PIXELS:
        resized_HWC = _resample_kept_part(image, (width, height), original.box, preprocessing)
        left, top = min(left, 0), min(top, 0)
    else:
        resized_HWC = resample(image, (width, height), original.box, preprocessing)
    kept_HWC = resized_HWC[max(0, top) :, max(0, left) :][:crop_height, :crop_width]
    if kept_HWC.shape[:2] != preprocessing.crop:
        padded_HWC = np.full((crop_height, crop_width, 3), preprocessing.fill, np.uint8)
        part_HWC = padded_HWC[max(0, -top) :, max(0, -left) :]
        part_HWC[: len(kept_HWC), : kept_HWC.shape[1]] = kept_HWC
        kept_HWC = padded_HWC
    kept_HWC = _packed(kept_HWC)
    kept_HWC.flags.writeable = False
    return kept_HWC


def _packed(pixels_HWC: np.ndarray) -> np.ndarray:
    """The same pixels, C-contiguous; three of four channels are copied one at a time, as NumPy is slow pixel by pixel."""
    if pixels_HWC.strides[1:] == (3, 1):
        return np.ascontiguousarray(pixels_HWC)
    packed_HWC = np.empty(pixels_HWC.shape, np.uint8)
    for channel in range(3):
        packed_HWC[..., channel] = pixels_HWC[..., channel]
    return packed_HWC


def _crop_offset(side: int, crop_side: int, offset: CropOffset) -> int:
    """Where the crop begins; negative where that many pixels are padded before the image (torchvision's `center_crop`)."""
    if side < crop_side:
        return -((crop_side - side) // 2)
    return round((side - crop_side) / 2.0) if offset == "round" else (side - crop_side) // 2


def _resample_kept_part(image: RgbImage, size: tuple[int, int], box: Box, preprocessing: Preprocessing) -> np.ndarray:
    """Bring the box of the image to `size` (width, height), but only compute what the crop keeps."""
    bounds, kept = [], []
    for low, high, resized_side, crop_side in zip(box[:2], box[2:], size, reversed(preprocessing.crop), strict=True):
        start = max(0, _crop_offset(resized_side, crop_side, preprocessing.crop_offset))
        kept.append(min(resized_side, crop_side))
        side = high - low
        bounds.append((low + start * side / resized_side, low + (start + kept[-1]) * side / resized_side))
    (left, right), (top, bottom) = bounds
    return resample(image, (kept[0], kept[1]), (left, top, right, bottom), preprocessing)
