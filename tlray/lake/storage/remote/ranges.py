"""One version of an object in a store as a file that is read by ranges."""

import io
from collections.abc import Callable
from typing import Any

STREAM_BYTES = 8 * 2**20
"""Length of the ranges that a file read from front to back asks for: a request's latency is little beside it."""


class RangeReader(io.RawIOBase):
    """A raw file: a range for each read.

    Args:
        size_bytes: of the object.
        fetch: gives the bytes from a place up to another.
    """

    def __init__(self, size_bytes: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size_bytes, self._fetch, self._position = size_bytes, fetch, 0

    def readable(self) -> bool:
        """Always: it reads, and does not write."""
        return True

    def seekable(self) -> bool:
        """Always: any range can be asked for."""
        return True

    def tell(self) -> int:
        """The position that the next read begins at."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Say where the next read is to begin."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any, /) -> int:  # typeshed's Buffer has no length
        """Fetch what fills a buffer, or what is left."""
        wanted = min(len(buffer), self._size_bytes - self._position)
        if wanted <= 0:
            return 0
        data = self._fetch(self._position, self._position + wanted)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
