"""Scaled decoding: libjpeg shrinks a large JPEG while it decodes it, by computing fewer pixels of each block of 8 x 8.

This is much faster for large photos. It is off unless the recipe has `preprocessing.scaled_decoding`, because the pixels differ
slightly from those of full decoding and resizing.
"""

from PIL import ImageFile

from tlray.lake.image.resize import Original, resized_size
from tlray.recipe import Preprocessing

MIN_RATIO = 2
"""A shrunk picture is at least this many times as wide and as high as the resized one.

It is the ratio that Pillow's documentation calls `reducing_gap`: 2.0 is "very close to fair resampling", and the default of
`Image.thumbnail`. `python -m tests.bench.decode` measures what it does to pixels and embeddings."""

_SCALES = (8, 4, 2)  # those that Pillow's `draft` takes; libjpeg has all eighths

# EXIF orientations (Exif 2.32, tag 0x0112) that swap width and height, or show the last stored pixel at the left or the top.
_SWAPPED = (5, 6, 7, 8)
_LAST_AT_LEFT = (2, 3, 6, 7)
_LAST_AT_TOP = (3, 4, 7, 8)


def decoding_scale(width: int, height: int, preprocessing: Preprocessing) -> int:
    """Choose what the sides of a JPEG are divided by while it is decoded: 8, 4 or 2, or 1 if it is too small for that.

    Args:
        width: width of the picture as shown, in pixels.
        height: height of the picture as shown, in pixels.
        preprocessing: one that `tlray.lake.image.resize.check_preprocessing` accepts.
    """
    resized_width, resized_height = resized_size(width, height, preprocessing)
    ratio = min(width / resized_width, height / resized_height)
    return next((scale for scale in _SCALES if scale * MIN_RATIO <= ratio), 1)


def shrink_while_loading(image: ImageFile.ImageFile, orientation: int, preprocessing: Preprocessing) -> Original | None:
    """Tell a JPEG that is not loaded yet to be decoded at a fraction of its size.

    Args:
        image: of format JPEG, opened.
        orientation: EXIF orientation, 1 to 8.
        preprocessing: the geometry that will be applied to the picture.

    Returns:
        What `apply_preprocessing` needs to know once the image is loaded and oriented; None where it is not large enough.
    """
    stored_width, stored_height = image.size
    swapped = orientation in _SWAPPED
    width, height = (stored_height, stored_width) if swapped else (stored_width, stored_height)
    scale = decoding_scale(width, height, preprocessing)
    if scale == 1:
        return None
    image.draft(None, (stored_width // scale, stored_height // scale))
    # Sides are rounded up, so that what is stored last may stand for a part of a pixel only.
    shrunk_width, shrunk_height = reversed(image.size) if swapped else image.size
    left = shrunk_width - width / scale if orientation in _LAST_AT_LEFT else 0.0
    top = shrunk_height - height / scale if orientation in _LAST_AT_TOP else 0.0
    return Original((width, height), (left, top, left + width / scale, top + height / scale))
