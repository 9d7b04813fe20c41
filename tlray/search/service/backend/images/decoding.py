"""Bounds on the memory of images that are decoded for requests."""

import threading
from collections.abc import Callable
from typing import TypeVar

from tlray.errors import ImageError, ImageErrorCode

ONE_AT_A_TIME_PIXELS = 16 * 2**20
"""Larger images are decoded one after the other: a photograph of most cameras and telephones has fewer pixels. Decoded, one of
so many takes about 130 MB with what it is made from."""

Decoded = TypeVar("Decoded")


class DecodingLimits:
    """Lets small images be decoded at once, one in each thread, and large ones one after the other.

    So memory is bounded by the number of threads times a photograph, and one of the largest images that are taken at all.

    Args:
        max_pixels: larger images are refused.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._turn = threading.Lock()

    def decode(self, decode: Callable[[int], Decoded]) -> Decoded:
        """Decode an image when it may be.

        Args:
            decode: given the number of pixels that it may decode, raises `bomb` for an image that declares more.

        Raises:
            ImageError: as `decode` does.
        """
        try:
            return decode(min(self._max_pixels, ONE_AT_A_TIME_PIXELS))
        except ImageError as error:
            if error.code != ImageErrorCode.BOMB or self._max_pixels <= ONE_AT_A_TIME_PIXELS:
                raise
        with self._turn:
            return decode(self._max_pixels)
