"""Plain JPEGs, decoded by libjpeg-turbo into pixels as torch resizes them.

Pillow rests on the same library and makes the same pixels, but takes longer, as it copies each row into four bytes a pixel.

Shape legend: H height, W width, C channels.
"""

import numpy as np
import simplejpeg
from PIL import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from tlray.lake.image.containers.jpeg import with_end
from tlray.lake.image.containers.picture import Picture

_MODES = ("RGB", "L")


def plain_pixels(image: ImageFile.ImageFile, picture: Picture) -> np.ndarray | None:
    """Decode a JPEG of grey or RGB that is whole and sound.

    Args:
        image: as Pillow opened it, not loaded: it says what is in the file.
        picture: of the file.

    Returns:
        pixels_HWC, uint8 RGB, C-contiguous, those of Pillow. None of another picture, and where libjpeg-turbo has so much as a
        warning, which it tells once it is done: Pillow then decides what is said of the file, and which pixels it has.
    """
    if type(image) is not JpegImageFile or image.mode not in _MODES or (data := with_end(picture)) is None:
        return None
    try:
        pixels_HWC: np.ndarray = simplejpeg.decode_jpeg(data, strict=True)
    except ValueError:
        return None
    return pixels_HWC if pixels_HWC.shape == (image.height, image.width, 3) else None
