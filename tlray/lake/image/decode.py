"""The one path from bytes to pixels: decode, orient, bring to RGB uint8, resize and crop.

The rule, version `tlray.recipe.IMAGE_RULE`:

- The first picture of an animation or of several pages; not a TIFF's preview (camera raw), which is `unsupported`.
- Pixels decide. What they do not depend on (text, colour profiles, thumbnails, broken EXIF, what follows the picture) is
  neither shown to the decoder nor a reason to refuse an image (`tlray.lake.image.containers`).
- EXIF orientation is applied, in whatever format carries it, or else XMP's; what cannot be read means none. AVIF has its own
  rotation, mirroring and clean aperture, which are applied instead.
- Alpha, and a colour or palette entry declared transparent, is composited on white; so is what the first frame of an animation
  leaves open.
- 16 bits become 8 by their high byte, since Pillow itself does so with RGB, RGBA and CMYK of 16 bits: the same picture stored
  in grey and in colour has the same levels. 12-bit grey likewise by its high 8 bits. Integers of 32 bits have no stated
  white level: they are read as 16 bits where all lie within 0..65535, and are `unsupported` otherwise. So are floats.
- CMYK and YCCK follow Pillow's formula and Adobe's inversion in a JPEG; Lab goes to sRGB by Pillow's own built-in profiles.
- ICC profiles are not applied: backbones were trained on pixels read without them.

Sound JPEGs of grey and RGB that are not to be turned are decoded without Pillow, into the same pixels, where torch resizes them
(`tlray.lake.image.plain_jpeg`).
With `preprocessing.scaled_decoding` large JPEGs are decoded at a fraction of their size (`tlray.lake.image.scaled_decoding`).

Shape legend: H height, W width, C channels.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from tlray.errors import ImageError, ImageErrorCode
from tlray.lake.image.colour import rgb_on_white, sample_format
from tlray.lake.image.containers import avif, gif, jpeg, others, png, tiff, webp
from tlray.lake.image.containers.picture import Picture, Rectangle, truncated, unsupported
from tlray.lake.image.formats import identify, known_but_not_read
from tlray.lake.image.plain_jpeg import plain_pixels
from tlray.lake.image.resample import RgbImage, is_by_torch
from tlray.lake.image.resize import Original, apply_preprocessing
from tlray.lake.image.scaled_decoding import shrink_while_loading
from tlray.recipe import IMAGE_RULE, ImageRule, Preprocessing


@dataclass(frozen=True, slots=True)
class _Format:
    """How the files of one image format are read.

    Attributes:
        read: takes from a file what its pixels depend on, by a version of the rule.
        open: the decoder. Pillow's plugins are called directly and not through `Image.open`, whose own limit on pixels is a
            global of the process, warns, and cannot be set for one call. Two plugins ask it all the same: WebP and TIFF above
            179 million pixels remain `bomb`.
        is_cut: whether a file ends before its own structure says so, which tells `truncated` from `corrupt` once decoding
            has failed.
    """

    read: Callable[[bytes, ImageRule], Picture]
    open: Callable[[io.BytesIO], ImageFile.ImageFile]
    is_cut: Callable[[bytes], bool]


_FORMATS = {
    "JPEG": _Format(lambda data, _: jpeg.read_jpeg(data), JpegImagePlugin.JpegImageFile, jpeg.is_cut),
    "PNG": _Format(lambda data, _: png.read_png(data), PngImagePlugin.PngImageFile, png.is_cut),
    "WEBP": _Format(webp.read_webp, WebPImagePlugin.WebPImageFile, webp.is_cut),
    "AVIF": _Format(avif.read_avif, AvifImagePlugin.AvifImageFile, avif.is_cut),
    "TIFF": _Format(lambda data, _: tiff.read_tiff(data), TiffImagePlugin.TiffImageFile, tiff.is_cut),
    "BMP": _Format(lambda data, _: others.read_bmp(data), BmpImagePlugin.BmpImageFile, others.is_cut_bmp),
    "GIF": _Format(lambda data, _: gif.read_gif(data), GifImagePlugin.GifImageFile, gif.is_cut),
    "PPM": _Format(lambda data, _: others.read_pnm(data), PpmImagePlugin.PpmImageFile, lambda _: False),
}

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
_SAYS_UNSUPPORTED = re.compile(
    r"unsupported|not supported|not installed|unknown (pixel mode|raw mode|data organization)", re.IGNORECASE
)

_MAX_DETAIL_CHARACTERS = 200
_ROW_BYTES_PER_PIXEL = 8  # at most: four channels of 16 bits


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """One image, ready for the device.

    Attributes:
        pixels_HWC: uint8, C-contiguous, read-only, exactly `preprocessing.crop` in size.
        width: width of the original as shown (after EXIF orientation), in pixels.
        height: height of the original as shown, in pixels.
    """

    pixels_HWC: np.ndarray
    width: int
    height: int


def decode_image(
    data: bytes, preprocessing: Preprocessing, *, max_pixels: int, image_rule: ImageRule = IMAGE_RULE
) -> DecodedImage:
    """Turn the bytes of an image file into resized and cropped pixels.

    Args:
        data: a file's bytes.
        preprocessing: one that `tlray.lake.image.resize.check_preprocessing` accepts.
        max_pixels: an image that declares more is not decoded.
        image_rule: the version of the rule, from the recipe: a table goes on with the one that it was made by.

    Raises:
        ImageError: and nothing else, whatever the bytes are.
    """
    image, original = _to_rgb(data, max_pixels, image_rule, preprocessing)
    try:
        pixels_HWC = apply_preprocessing(image, preprocessing, original)
    except Exception as error:  # the one-image boundary
        raise ImageError(ImageErrorCode.CORRUPT, _detail(error)) from error
    return DecodedImage(pixels_HWC, *original.size)


def to_rgb(data: bytes, *, max_pixels: int) -> Image.Image:
    """Decode an image file to an upright RGB image of full size.

    Args:
        data: a file's bytes.
        max_pixels: an image that declares more is not decoded.

    Returns:
        A loaded image of mode RGB, as shown.

    Raises:
        ImageError: and nothing else: `empty`, `not_an_image`, `unsupported`, `bomb`, `truncated` or `corrupt`.
    """
    image, _ = _to_rgb(data, max_pixels, IMAGE_RULE, None)
    assert isinstance(image, Image.Image)  # without a geometry
    return image


def _to_rgb(
    data: bytes, max_pixels: int, image_rule: ImageRule, preprocessing: Preprocessing | None
) -> tuple[RgbImage, Original]:
    if not data:
        raise ImageError(ImageErrorCode.EMPTY, "0 bytes")
    name = identify(data)
    if name is None:
        reason = known_but_not_read(data)
        if reason is None:
            raise ImageError(ImageErrorCode.NOT_AN_IMAGE, f"begins with {data[:8]!r}")
        raise ImageError(ImageErrorCode.UNSUPPORTED, reason)
    image_format = _FORMATS[name]
    try:
        picture = image_format.read(data, image_rule)
        _check_size(picture.size, max_pixels)
        if picture.too_slow is not None:
            raise unsupported(picture.too_slow)
        image = image_format.open(io.BytesIO(picture.data))
        _check_size(image.size, max_pixels)
        for other_end in picture.other_ends:
            _check_end(picture.data, other_end, image_format)
        return _shown(image, picture, preprocessing)
    except ImageError:
        raise
    except Exception as error:  # the one-image boundary; decoders raise almost anything
        raise ImageError(_code_of(error, image_format, data), _detail(error)) from error


def _check_size(size: tuple[int, int] | None, max_pixels: int) -> None:
    if size is not None and size[0] * size[1] > max_pixels:
        raise ImageError(ImageErrorCode.BOMB, f"declares {size[0]} x {size[1]} pixels; at most {max_pixels} are decoded")


def _check_end(data: bytes, other_end: bytes, image_format: _Format) -> None:
    """Refuse a picture whose pixels depend on what follows its data: some are missing."""
    one, other = (np.asarray(image_format.open(io.BytesIO(each))) for each in (data, other_end))
    if not np.array_equal(one, other):
        raise truncated("the file ends before the end of its image data")


def _shown(image: ImageFile.ImageFile, picture: Picture, preprocessing: Preprocessing | None) -> tuple[RgbImage, Original]:
    """Load a picture, and bring it to RGB as it is shown."""
    # Pillow gives AVIF's own rotation and mirroring as EXIF.
    of_avif = image.format == "AVIF"
    orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1)) if of_avif else picture.orientation
    samples = sample_format(image)
    original = None
    if preprocessing is not None and preprocessing.scaled_decoding and picture.can_shrink:
        original = shrink_while_loading(image, orientation, preprocessing)
    transpose = _TRANSPOSES.get(orientation)
    if original is None and transpose is None and preprocessing is not None and is_by_torch(preprocessing):
        pixels_HWC = plain_pixels(image, picture)
        if pixels_HWC is not None:
            return pixels_HWC, Original.unshrunk(image.size)
    # Pillow copies what it has of a row with each block that it reads, which takes the square of a wide row's bytes.
    image.decodermaxblock = max(image.decodermaxblock, image.width * _ROW_BYTES_PER_PIXEL)
    image.load()
    rgb = rgb_on_white(image, *samples)
    if picture.drawn not in (None, (0, 0, *image.size)):
        rgb = _drawn_on_white(rgb, picture.drawn)
    if picture.shown is not None:
        rgb = rgb.crop(picture.shown)
    if transpose is not None:
        rgb = rgb.transpose(transpose)
    return rgb, original or Original.unshrunk(rgb.size)


def _drawn_on_white(rgb: Image.Image, drawn: Rectangle) -> Image.Image:
    """Leave what the first frame draws, where Pillow takes what it leaves open from the palette."""
    canvas = Image.new("RGB", rgb.size, "white")
    canvas.paste(rgb.crop(drawn), drawn[:2])
    return canvas


def _code_of(error: Exception, image_format: _Format, data: bytes) -> ImageErrorCode:
    message = str(error)
    if isinstance(error, Image.DecompressionBombError):
        return ImageErrorCode.BOMB
    if _SAYS_TRUNCATED.search(message) or image_format.is_cut(data):
        return ImageErrorCode.TRUNCATED
    if isinstance(error, NotImplementedError) or _SAYS_UNSUPPORTED.search(message):
        return ImageErrorCode.UNSUPPORTED
    return ImageErrorCode.CORRUPT


def _detail(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_DETAIL_CHARACTERS]
