"""From whatever a Python user calls an image to the pixels that a backbone takes.

Shape legend: B images, H height, W width, C channels.
"""

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from tlray.errors import ConfigError, ImageError, ImageErrorCode, ObjectNotFoundError, ObjectTooLargeError, SourceError
from tlray.lake.image.decode import decode_image
from tlray.lake.image.resize import apply_preprocessing
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import to_uri
from tlray.recipe import Recipe

MAX_IMAGE_BYTES = 256 * 2**20
MAX_IMAGE_PIXELS = 256_000_000
"""The defaults of `source.max_image_bytes` and `source.max_image_pixels`."""

OneImage = str | bytes | Image.Image | np.ndarray
"""A path or URI, a file's bytes, a picture of Pillow's, or an array of levels."""

_CHANNELS = (1, 3, 4)
_PNG_MODES = frozenset(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"))
_SHOWN_CHARACTERS = 80


def each_image(given: Any) -> Iterator[OneImage]:
    """The images of anything that holds some, in order; batches and nested iterables are taken apart.

    Args:
        given: a path, a URI, bytes, a picture of Pillow's, an array or tensor of one image or of a batch, a column of a data
            frame, or an iterable of any of these, generators included.

    Raises:
        ConfigError: something that is no image and holds none.
    """
    if isinstance(given, os.PathLike):
        yield os.fspath(given)
    elif isinstance(given, (str, bytes, Image.Image)):
        yield given
    elif isinstance(given, (bytearray, memoryview)):
        yield bytes(given)
    elif hasattr(given, "columns") and hasattr(given, "iloc"):
        yield from each_image(only_column(given))
    elif hasattr(given, "as_py"):  # a scalar of pyarrow's
        yield from each_image(given.as_py())
    elif isinstance(given, np.ndarray) or hasattr(given, "__array_interface__") or type(given).__module__ == "torch":
        yield from _of_array(np.asarray(given))
    elif isinstance(given, Iterable) and not isinstance(given, Mapping):
        for each in given:
            yield from each_image(each)
    else:
        raise ConfigError(
            f"{type(given).__name__} is no image; expected a path, a URI, bytes, a picture of Pillow's, a uint8 array of "
            "(height, width, 3), or several of them"
        )


def only_column(frame: Any, whose: str = "images'") -> Any:
    """The column of a data frame that has no other.

    Args:
        frame: of pandas.
        whose: column it is, for the message.

    Raises:
        ConfigError: it has others.
    """
    if frame.shape[1] != 1:
        raise ConfigError(
            f"a data frame of {frame.shape[1]} columns is given ({', '.join(map(str, frame.columns))}); give the {whose} one"
        )
    return frame.iloc[:, 0]


def _of_array(array: np.ndarray) -> Iterator[OneImage]:
    if array.dtype.kind in "OU":
        for each in array.reshape(-1).tolist():
            yield from each_image(each)
        return
    if array.dtype not in (np.uint8, np.uint16):
        raise ConfigError(
            f"an array of {array.dtype} is given, whose white level nobody knows; expected uint8: for values in 0..1 give "
            "(255 * images).round().astype('uint8')"
        )
    if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in _CHANNELS):
        yield array
    elif array.ndim == 4 and array.shape[-1] in _CHANNELS:
        yield from array
    else:
        raise ConfigError(
            f"an array of shape {array.shape} is given; expected (H, W), (H, W, C) or (B, H, W, C), 1, 3 or 4 channels last: "
            "images[..., None] of grey batches, np.moveaxis(images, -3, -1) where channels come first"
        )


def name_of(position: int, image: OneImage) -> str:
    """An image in a message: its position among those given, and its address where it has one."""
    if isinstance(image, str):
        return f"input {position} ({image if len(image) <= _SHOWN_CHARACTERS else f'...{image[-_SHOWN_CHARACTERS:]}'})"
    address = getattr(image, "filename", None)
    return f"input {position} ({address})" if address else f"input {position}"


def pixels_of(image: OneImage, recipe: Recipe) -> np.ndarray:
    """Bring an image to pixels by the rule that tables are made by.

    A file's bytes go the very path of extraction. A picture of Pillow's and an array are decoded already: they are oriented,
    brought to RGB on white, resized and cropped by the same rule; only `scaled_decoding`, which is part of decoding, is not
    done to them.

    Args:
        image: one.
        recipe: for its preprocessing and the version of the rule.

    Returns:
        pixels_HWC, uint8, exactly the recipe's crop.

    Raises:
        ImageError: it cannot be used.
        StorageError, AccessError: its store failed or refused.
    """
    if isinstance(image, str):
        image = _read(image)
    if not isinstance(image, bytes):
        try:
            picture = _upright(image)
            if picture.mode == "RGB" and "transparency" not in picture.info:
                return apply_preprocessing(picture, recipe.preprocessing)
            image = _as_file(picture)
        except Exception as error:  # the one-image boundary: Pillow's pictures are often not loaded yet
            raise ImageError(ImageErrorCode.CORRUPT, f"{type(error).__name__}: {error}") from error
    decoded = decode_image(image, recipe.preprocessing, max_pixels=MAX_IMAGE_PIXELS, image_rule=recipe.image_rule)
    return decoded.pixels_HWC


def _read(address: str) -> bytes:
    uri = to_uri(address)
    try:
        return open_store(uri).read(uri, max_bytes=MAX_IMAGE_BYTES).data
    except (ObjectNotFoundError, SourceError) as error:
        raise ImageError(ImageErrorCode.NOT_FOUND, str(error)) from error
    except ObjectTooLargeError as error:
        raise ImageError(ImageErrorCode.TOO_LARGE, str(error)) from error


def _upright(image: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image)
    return ImageOps.exif_transpose(image)


def _as_file(picture: Image.Image) -> bytes:
    """A picture that is not plain RGB as a file that holds the same levels, to be decoded by the rule for its mode."""
    if picture.mode in ("HSV", "YCbCr", "RGBX", "RGBa", "La"):
        picture = picture.convert("RGBA" if picture.mode == "RGBa" else "LA" if picture.mode == "La" else "RGB")
    buffer = io.BytesIO()
    if picture.mode in _PNG_MODES:
        picture.save(buffer, "PNG", compress_level=1)
    else:
        picture.save(buffer, "TIFF")
    return buffer.getvalue()


@dataclass(frozen=True)
class ImageInputs:
    """Images for `tlray.api.embedding.running.Runner`: taken apart, named and brought to pixels.

    Attributes:
        recipe: how they become pixels.
    """

    recipe: Recipe

    def each(self, given: Any) -> Iterator[OneImage]:
        """The images in what was given; see `each_image`."""
        return each_image(given)

    def name_of(self, position: int, image: OneImage) -> str:
        """What messages call an image; see `name_of` of this module."""
        return name_of(position, image)

    def label_of(self, position: int, image: OneImage) -> str:
        """An image in a table of predictions: its address, or its position."""
        return image if isinstance(image, str) else name_of(position, image)

    def prepare(self, image: OneImage) -> np.ndarray:
        """The pixels that the network takes; see `pixels_of`."""
        return pixels_of(image, self.recipe)

    def join(self, pixels: list[Any]) -> np.ndarray:
        """Images_BHWC of the pixels of several images."""
        return np.stack(pixels)
