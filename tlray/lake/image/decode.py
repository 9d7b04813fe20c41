"""The one path from bytes to pixels: decode, orient, bring to RGB uint8, resize and crop.

The rule, version `tlray.recipe.IMAGE_RULE`:

- The first picture of an animation or of several pages; not a TIFF's preview (camera raw), which is `unsupported`.
- EXIF orientation is applied, in whatever format carries it; EXIF that cannot be read means no orientation.
- Alpha, and a colour or palette entry declared transparent, is composited on white; so is what a GIF's first frame leaves open.
- 16 bits become 8 by their high byte, since Pillow itself does so with RGB, RGBA and CMYK of 16 bits: the same picture stored
  in grey and in colour has the same levels. 12-bit grey likewise by its high 8 bits. Integers of 32 bits have no stated
  white level: they are read as 16 bits where all lie within 0..65535, and are `unsupported` otherwise. So are floats.
- CMYK and YCCK follow Pillow's formula and Adobe's inversion in a JPEG; Lab goes to sRGB by Pillow's own built-in profiles.
- ICC profiles are not applied: backbones were trained on pixels read without them.

With `preprocessing.scaled_decoding` large JPEGs are decoded at a fraction of their size (`tlray.lake.image.scaled_decoding`).

Shape legend: H height, W width, C channels.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from tlray.errors import ImageError, ImageErrorCode
from tlray.lake.image.formats import has_16_bit_bmp_alpha, has_bad_png_checksum, identify, is_cut, known_but_not_read
from tlray.lake.image.resize import Original, apply_preprocessing
from tlray.lake.image.scaled_decoding import shrink_while_loading
from tlray.recipe import Preprocessing

# The plugins are called directly and not through Image.open, whose own limit on pixels is a global of the process, warns,
# and cannot be set for one call. Two plugins ask it all the same: WebP and TIFF above 179 million pixels remain `bomb`.
_OPENERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
}

_TIFF_NEW_SUBFILE_TYPE = 254
"""TIFF 6.0; bit 0 says that the picture is a reduced version of another one in the file."""

SLOW_PNM_MAX_PIXELS = 2**22
"""PNM files written as text, or whose maxval is not 1, 255 or 65535, are decoded in Python, at up to 3 s a million pixels."""

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation (Exif 2.32, tag 0x0112)."""

# Pillow tells these causes apart by their text alone.
_SAYS_TRUNCATED = re.compile(r"truncated|not enough|end of file|\beof\b|buffer is not large enough", re.IGNORECASE)
_SAYS_UNSUPPORTED = re.compile(r"unsupported|not supported|not installed|unknown (pixel mode|data organization)", re.IGNORECASE)

_MAX_DETAIL_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """One image, ready for the device.

    Attributes:
        pixels_HWC: uint8, C-contiguous, read-only, exactly `preprocessing.crop` in size.
        width: of the original as shown (after EXIF orientation), in pixels.
        height: likewise.
    """

    pixels_HWC: np.ndarray
    width: int
    height: int


def decode_image(data: bytes, preprocessing: Preprocessing, *, max_pixels: int) -> DecodedImage:
    """Go the whole path from bytes to pixels.

    Args:
        data: a file's bytes.
        preprocessing: one that `tlray.lake.image.resize.check_preprocessing` accepts.
        max_pixels: an image that declares more is not decoded.

    Raises:
        ImageError: and nothing else, whatever the bytes are.
    """
    image, original = _to_rgb(data, max_pixels, preprocessing)
    try:
        pixels_HWC = apply_preprocessing(image, preprocessing, original)
    except Exception as error:  # the one-image boundary
        raise ImageError(ImageErrorCode.CORRUPT, _detail(error)) from error
    return DecodedImage(pixels_HWC, *original.size)


def to_rgb(data: bytes, *, max_pixels: int) -> Image.Image:
    """Decode and orient, and bring to RGB, at full size.

    Args:
        data: a file's bytes.
        max_pixels: an image that declares more is not decoded.

    Returns:
        A loaded image of mode RGB, as shown.

    Raises:
        ImageError: and nothing else: `empty`, `not_an_image`, `unsupported`, `bomb`, `truncated` or `corrupt`.
    """
    return _to_rgb(data, max_pixels, None)[0]


def _to_rgb(data: bytes, max_pixels: int, preprocessing: Preprocessing | None) -> tuple[Image.Image, Original]:
    if not data:
        raise ImageError(ImageErrorCode.EMPTY, "0 bytes")
    image_format = identify(data)
    if image_format is None:
        reason = known_but_not_read(data)
        if reason is None:
            raise ImageError(ImageErrorCode.NOT_AN_IMAGE, f"begins with {data[:8]!r}")
        raise ImageError(ImageErrorCode.UNSUPPORTED, reason)
    try:
        return _decode(data, image_format, max_pixels, preprocessing)
    except ImageError:
        raise
    except Exception as error:  # the one-image boundary; decoders raise almost anything
        raise ImageError(_code_of(error, image_format, data), _detail(error)) from error


def _decode(
    data: bytes, image_format: str, max_pixels: int, preprocessing: Preprocessing | None
) -> tuple[Image.Image, Original]:
    image = _OPENERS[image_format](io.BytesIO(data))
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(ImageErrorCode.BOMB, f"declares {width} x {height} pixels; at most {max_pixels} are decoded")
    _refuse_what_decoders_let_pass(image, data)
    sample_bits, inverted = _sample_format(image)
    frame = image.tile[0].extents if image_format == "GIF" and image.tile else None
    original = None
    if preprocessing is not None and preprocessing.scaled_decoding and image.format == "JPEG":
        original = shrink_while_loading(image, _orientation(image), preprocessing)
    image.load()
    rgb = (
        _grey_from_integers(image, sample_bits, inverted)
        if image.mode.startswith("I")
        else _rgb_from_8_bits(image, sample_bits)
    )
    if frame not in (None, (0, 0, *image.size)):
        rgb = _frame_on_white(rgb, frame)
    transpose = _TRANSPOSES.get(_orientation(image))
    if transpose is not None:
        rgb = rgb.transpose(transpose)
    return rgb, original or Original(rgb.size, (0.0, 0.0, *rgb.size))


def _refuse_what_decoders_let_pass(image: ImageFile.ImageFile, data: bytes) -> None:
    """Find the files that Pillow would make a wrong picture of without saying so, or take minutes over."""
    if image.format == "JPEG" and is_cut("JPEG", data):
        raise ImageError(ImageErrorCode.TRUNCATED, "the file ends before the end of its image data")
    if image.format == "PNG" and has_bad_png_checksum(data):
        raise ImageError(ImageErrorCode.CORRUPT, "the checksum of an IDAT chunk is wrong")
    if image.format == "BMP" and has_16_bit_bmp_alpha(data):
        raise ImageError(ImageErrorCode.UNSUPPORTED, "BMP of 16 bits with alpha")
    if image.format == "PPM" and image.tile[0].codec_name != "raw" and image.width * image.height > SLOW_PNM_MAX_PIXELS:
        raise ImageError(
            ImageErrorCode.UNSUPPORTED, f"PNM of more than {SLOW_PNM_MAX_PIXELS} pixels as text or of an odd maxval"
        )
    # Camera raw files (DNG, NEF, ARW) are TIFFs whose first picture is a preview.
    if isinstance(image, TiffImagePlugin.TiffImageFile) and int(image.tag_v2.get(_TIFF_NEW_SUBFILE_TYPE, 0)) & 1:
        raise ImageError(ImageErrorCode.UNSUPPORTED, "camera raw, or a TIFF whose first picture is a preview")


def _sample_format(image: ImageFile.ImageFile) -> tuple[int, bool]:
    """Bits of one stored sample, and whether 0 is white where Pillow leaves that as it is; asked before loading."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (8,))[0]
        white_is_zero = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        return int(bits), white_is_zero and image.mode.startswith("I")
    if isinstance(image, PngImagePlugin.PngImageFile):
        raw_mode = re.search(r";(\d+)", str(image.tile[0].args)) if image.tile else None
        return int(raw_mode[1]) if raw_mode else 8, False
    return 16 if image.mode.startswith("I") else 8, False


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 where there is none that can be read.

    TIFFs were turned by Pillow while loading; it also takes tiff:Orientation of XMP where EXIF has none, and
    translates AVIF's own rotation and mirroring.
    """
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - every viewer shows pictures with broken EXIF
        return 1


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


def _frame_on_white(rgb: Image.Image, frame: tuple[int, int, int, int]) -> Image.Image:
    """What a GIF's first frame (left, top, right, bottom) leaves open is transparent; Pillow takes it from the palette."""
    screen = Image.new("RGB", rgb.size, "white")
    screen.paste(rgb.crop(frame), frame[:2])
    return screen


def _rgb_from_8_bits(image: Image.Image, sample_bits: int) -> Image.Image:
    if image.mode == "F":
        raise ImageError(ImageErrorCode.UNSUPPORTED, "floats have no white level")
    if image.mode == "LAB":
        return _rgb_from_lab(image)
    if image.has_transparency_data:
        _scale_transparency(image, sample_bits)
        rgba = image.convert("RGBA")
        rgb = Image.new("RGB", rgba.size, "white")
        rgb.paste(rgba, mask=rgba)
        return rgb
    return image if image.mode == "RGB" else image.convert("RGB")


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


def _code_of(error: Exception, image_format: str, data: bytes) -> ImageErrorCode:
    message = str(error)
    if isinstance(error, Image.DecompressionBombError):
        return ImageErrorCode.BOMB
    if _SAYS_TRUNCATED.search(message) or is_cut(image_format, data):
        return ImageErrorCode.TRUNCATED
    if isinstance(error, NotImplementedError) or _SAYS_UNSUPPORTED.search(message):
        return ImageErrorCode.UNSUPPORTED
    return ImageErrorCode.CORRUPT


def _detail(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_DETAIL_CHARACTERS]
