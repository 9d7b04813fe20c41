"""Scaled decoding: libjpeg shrinks a large JPEG while it decodes it, by computing fewer pixels of each block of 8 x 8.

A photo of 12 megapixels takes a third of the time. Off unless the recipe has `preprocessing.scaled_decoding`, since the pixels
are not quite those of decoding in full and resizing.
"""

from PIL import ImageFile

from tlray.lake.image.resize import Original, resized_size
from tlray.recipe import Preprocessing

MIN_RATIO = 2
"""What is left is at least this many times as wide and as high as it is to become. From Pillow's documentation of
`reducing_gap`, the same ratio: 2.0 is "very close to fair resampling", and the default of `Image.thumbnail`.

On photos of 3 and 12 megapixels values were 0.4 and 0.5 levels off on average and 19 at most, embeddings at a cosine of
0.9995 or more (EfficientNet-Lite0, `python -m tests.bench.decode`)."""

_SCALES = (8, 4, 2)  # those that Pillow's `draft` takes; libjpeg has all eighths

# EXIF orientations (Exif 2.32, tag 0x0112) that swap width and height, or show the last stored pixel at the left or the top.
_SWAPPED = (5, 6, 7, 8)
_LAST_AT_LEFT = (2, 3, 6, 7)
_LAST_AT_TOP = (3, 4, 7, 8)


def decoding_scale(width: int, height: int, preprocessing: Preprocessing) -> int:
    """What the sides of a JPEG are divided by while it is decoded: 8, 4, 2, or 1 where it is too small for that.

    Args:
        width: of the picture as shown, in pixels.
        height: likewise.
        preprocessing: one that `tlray.lake.image.resize.check_preprocessing` accepts.
    """
    resized_width, resized_height = resized_size(width, height, preprocessing)
    ratio = min(width / resized_width, height / resized_height)
    return next((scale for scale in _SCALES if scale * MIN_RATIO <= ratio), 1)


def shrink_while_loading(image: ImageFile.ImageFile, orientation: int, preprocessing: Preprocessing) -> Original | None:
    """Tell a JPEG that is not loaded yet to be decoded at a fraction of its size.

    Args:
        image: of format JPEG, opened.
        orientation: by its EXIF.
        preprocessing: what the picture is to become.

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
