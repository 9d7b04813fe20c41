"""Thumbnails of images that an index knows, by row; never by an address that somebody sends."""

import io
import threading
from collections import OrderedDict

from PIL import Image

from tlray.errors import AccessError, ImageError, ImageErrorCode, SourceError, StorageError
from tlray.lake.containers import container_of
from tlray.lake.images import to_rgb
from tlray.lake.storage import open_store

SIDE_PIXELS = 320
"""Longest side: a card of the page at 160 CSS pixels, on a screen of two pixels to each."""

QUALITY = 80
MAX_IMAGE_BYTES = 64 * 2**20


class Thumbnails:
    """Makes thumbnails and keeps the latest; from many threads.

    Args:
        max_pixels: larger images are not decoded.
        cache_bytes: of JPEGs that are kept.
    """

    def __init__(self, *, max_pixels: int, cache_bytes: int = 64 * 2**20) -> None:
        self._max_pixels, self._cache_bytes = max_pixels, cache_bytes
        self._kept: OrderedDict[tuple[str, str | None], bytes] = OrderedDict()
        self._size_bytes = 0
        self._lock = threading.Lock()

    def get(self, uri: str, etag: str | None) -> bytes:
        """The JPEG of a row.

        Args:
            uri: of a row of the index.
            etag: of the row; another one is another picture.

        Raises:
            ImageError: it cannot be had or decoded, or is inside a tar or Parquet file.
        """
        with self._lock:
            if (uri, etag) in self._kept:
                self._kept.move_to_end((uri, etag))
                return self._kept[uri, etag]
        data = self._make(uri)
        with self._lock:
            if (uri, etag) not in self._kept:
                self._kept[uri, etag] = data
                self._size_bytes += len(data)
            while self._size_bytes > self._cache_bytes:
                self._size_bytes -= len(self._kept.popitem(last=False)[1])
        return data

    def _make(self, uri: str) -> bytes:
        if container_of(uri) != uri:
            raise ImageError(ImageErrorCode.UNSUPPORTED, "no thumbnails of images inside tar and Parquet files")
        try:
            data = open_store(uri).read(uri, max_bytes=MAX_IMAGE_BYTES).data
        except (StorageError, SourceError, AccessError) as error:
            raise ImageError(ImageErrorCode.NOT_FOUND, str(error)) from error
        image = to_rgb(data, max_pixels=self._max_pixels)
        image.thumbnail((SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.BILINEAR, reducing_gap=2.0)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=QUALITY)
        return buffer.getvalue()
