"""Thumbnails of images that an index knows, by row; never by an address that somebody sends."""

import io
import threading
from collections import OrderedDict

from PIL import Image

from tlray.config import SourceConfig
from tlray.errors import AccessError, ImageError, ImageErrorCode, SourceError, StorageError
from tlray.lake.image.decode import to_rgb
from tlray.lake.source.containers.members import kind_of_container, read_members
from tlray.lake.source.member_uri import container_of
from tlray.lake.storage.open import open_store
from tlray.search.service.backend.images.decoding import DecodingLimits

SIDE_PIXELS = 320
"""Longest side: a card of the page at 160 CSS pixels, on a screen of two pixels to each."""

QUALITY = 80
MAX_IMAGE_BYTES = 64 * 2**20
MEMBERS_KEPT_BYTES = 128 * 2**20
"""How many bytes are kept of images inside tar and Parquet files: some hundred photographs, more than a page shows."""


class Thumbnails:
    """Makes thumbnails and keeps the latest; from many threads.

    Args:
        limits: within which images are decoded.
        cache_bytes: of JPEGs that are kept.
    """

    def __init__(self, limits: DecodingLimits, *, cache_bytes: int = 64 * 2**20) -> None:
        self._limits, self._cache_bytes = limits, cache_bytes
        self._kept: OrderedDict[tuple[str, str | None], bytes] = OrderedDict()
        self._size_bytes = 0
        self._lock = threading.Lock()
        self._members = _Members()

    def kept(self, uri: str, etag: str | None) -> bytes | None:
        """A row's JPEG that was made before, or None."""
        with self._lock:
            data = self._kept.get((uri, etag))
            if data is not None:
                self._kept.move_to_end((uri, etag))
            return data

    def get(self, uri: str, etag: str | None) -> bytes:
        """The JPEG of a row, made unless it is kept.

        Args:
            uri: of a row of the index.
            etag: of the row; another one is another picture.

        Raises:
            ImageError: it cannot be had or decoded.
        """
        kept = self.kept(uri, etag)
        if kept is not None:
            return kept
        data = self._make(uri, etag)
        with self._lock:
            if (uri, etag) not in self._kept:
                self._kept[uri, etag] = data
                self._size_bytes += len(data)
            while self._size_bytes > self._cache_bytes:
                self._size_bytes -= len(self._kept.popitem(last=False)[1])
        return data

    def _make(self, uri: str, etag: str | None) -> bytes:
        try:
            if container_of(uri) != uri:
                data = self._members.get(uri, etag)
            else:
                data = open_store(uri).read(uri, max_bytes=MAX_IMAGE_BYTES).data
        except (StorageError, SourceError, AccessError) as error:
            raise ImageError(ImageErrorCode.NOT_FOUND, str(error)) from error
        return self._limits.decode(lambda most: _thumbnail(data, max_pixels=most))


def _thumbnail(data: bytes, *, max_pixels: int) -> bytes:
    image = to_rgb(data, max_pixels=max_pixels)
    image.thumbnail((SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


class _Members:
    """Images inside tar and Parquet files, which are read from their beginning.

    What is passed on the way is kept for a while, as a page shows many images of one file.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._size_bytes = 0
        self._lock = threading.Lock()

    def get(self, uri: str, etag: str | None) -> bytes:
        """The bytes of one member of a container.

        Args:
            uri: of the member.
            etag: of its file as the row has it; another file of that name is refused.

        Raises:
            ImageError: it cannot be had.
            StorageError, SourceError, AccessError: nor can its file.
        """
        with self._lock:  # who waits finds what the one before passed
            if uri in self._kept:
                return self._kept[uri]
            container = container_of(uri)
            kind = kind_of_container(container)
            for member in read_members(kind, container, etag, SourceConfig(uri=container, max_image_bytes=MAX_IMAGE_BYTES)):
                if isinstance(member.data, bytes):
                    self._keep(member.uri, member.data)
                if member.uri == uri:
                    if isinstance(member.data, ImageError):
                        raise member.data
                    return member.data
        raise ImageError(ImageErrorCode.NOT_FOUND, f"{container} has no such member any more")

    def _keep(self, uri: str, data: bytes) -> None:
        self._size_bytes += len(data) - len(self._kept.pop(uri, b""))
        self._kept[uri] = data
        while self._size_bytes > MEMBERS_KEPT_BYTES:
            self._size_bytes -= len(self._kept.popitem(last=False)[1])
