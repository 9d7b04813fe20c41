"""Convert a decoded picture of any mode to 8-bit RGB, with transparency on white; the rule is in `tlray.lake.image.decode`.

Shape legend: H height, W width.
"""

import re
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageFile, PngImagePlugin, TiffImagePlugin

from tlray.errors import ImageError, ImageErrorCode

_WITHOUT_DIRECT_RGBA = {"La": "LA"}  # modes that Pillow brings to RGBA only by way of another


def sample_format(image: ImageFile.ImageFile) -> tuple[int, bool]:
    """Say how samples are stored; must be asked before the pixels are loaded.

    Returns:
        Bits of one stored sample, and whether 0 is white where Pillow does not invert that itself.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (8,))[0]
        white_is_zero = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        return int(bits), white_is_zero and image.mode.startswith("I")
    if isinstance(image, PngImagePlugin.PngImageFile):
        raw_mode = re.search(r";(\d+)", str(image.tile[0].args)) if image.tile else None
        return int(raw_mode[1]) if raw_mode else 8, False
    return 16 if image.mode.startswith("I") else 8, False


def rgb_on_white(image: ImageFile.ImageFile, sample_bits: int, inverted: bool) -> Image.Image:
    """Convert a loaded picture to mode RGB, with what is transparent in it on white.

    Args:
        image: a picture whose pixels are loaded.
        sample_bits: bits of one stored sample, from `sample_format`.
        inverted: whether 0 is white, from `sample_format`.

    Raises:
        ImageError: `unsupported`: its numbers have no white level.
    """
    if image.mode.startswith("I"):
        return _grey_from_integers(image, sample_bits, inverted)
    if image.mode == "F":
        raise ImageError(ImageErrorCode.UNSUPPORTED, "floats have no white level")
    if image.mode == "LAB":
        return _rgb_from_lab(image)
    if image.has_transparency_data:
        _scale_transparency(image, sample_bits)
        straight = image.convert(_WITHOUT_DIRECT_RGBA.get(image.mode, image.mode))
        rgba = straight.convert("RGBA")
        rgb = Image.new("RGB", rgba.size, "white")
        rgb.paste(rgba, mask=rgba)
        return rgb
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_from_integers(image: Image.Image, sample_bits: int, inverted: bool) -> Image.Image:
    """Grey of more than 8 bits to RGB: its high byte."""
    levels_HW = np.asarray(image)
    bits = sample_bits if sample_bits <= 16 else 16
    if levels_HW.min() < 0 or levels_HW.max() >= 1 << bits:
        raise ImageError(
            ImageErrorCode.UNSUPPORTED, f"integers within {levels_HW.min()}..{levels_HW.max()} have no white level"
        )
    grey_HW = (levels_HW >> (bits - 8)).astype(np.uint8)
    if inverted:
        grey_HW = 255 - grey_HW
    if "transparency" in image.info:
        grey_HW[levels_HW == image.info["transparency"]] = 255
    return Image.fromarray(grey_HW).convert("RGB")


def _scale_transparency(image: Image.Image, sample_bits: int) -> None:
    """Bring a PNG's transparent colour, which Pillow leaves in the file's own depth, to the 8 bits of the pixels.

    With 16-bit RGB every colour of the same high bytes becomes transparent, as Pillow has dropped the low ones.
    """
    key: Any = image.info.get("transparency")
    if isinstance(image, PngImagePlugin.PngImageFile) and image.mode == "L" and isinstance(key, int):
        image.info["transparency"] = key * 255 // ((1 << sample_bits) - 1)
    elif isinstance(image, PngImagePlugin.PngImageFile) and image.mode == "RGB" and sample_bits == 16:
        image.info["transparency"] = tuple(level >> 8 for level in key)


def _rgb_from_lab(image: Image.Image) -> Image.Image:
    to_srgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    rgb = ImageCms.applyTransform(image, to_srgb)
    if rgb is None:
        raise ImageError(ImageErrorCode.UNSUPPORTED, "Lab could not be brought to RGB")
    return rgb
