"""An S3 object as a raw Python file."""

import io
from collections.abc import Callable
from typing import Any, Protocol

from tlray.errors import StorageError
from tlray.lake.storage.retry import BODY_ATTEMPTS, Attempts
from tlray.lake.storage.s3.errors import BROKEN_BODY
from tlray.lake.storage.store import ObjectInfo


class Body(Protocol):
    """What is used of the body of boto3's answer to a GET."""

    def read(self, amt: int | None = None) -> bytes:
        """At most `amt` bytes; none at the end."""
        ...

    def close(self) -> None:
        """End the connection where it was not read to its end."""
        ...


class S3Reader(io.RawIOBase):
    """One object's bytes: in ranges as they are asked for, or, given the body of a GET, from that one connection.

    What breaks off is asked for again from there.

    Args:
        get: the body of the bytes from a first one to a last one (both included; None: to the end), on the condition that
            the object still has the etag of `info`.
        info: of the object.
        body: of a GET of the whole object.
    """

    def __init__(self, get: Callable[[int, int | None], Body], info: ObjectInfo, body: Body | None = None) -> None:
        self._get, self._info, self._body, self._position = get, info, body, 0
        self._streams = body is not None

    def readable(self) -> bool:
        """True: this is a file for reading."""
        return True

    def seekable(self) -> bool:
        """Whether `seek` works: only where the object is read in ranges, not as a stream."""
        return not self._streams

    def tell(self) -> int:
        """Offset of the next byte that is read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to an offset; this alone sends no request."""
        if self._streams:
            raise io.UnsupportedOperation("seek in a stream")
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._info.size_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any, /) -> int:  # typeshed's Buffer has no length
        """Read at most as many bytes as fit into a buffer.

        Raises:
            ObjectChangedError: the object was replaced since `info`.
            StorageError: the connection broke again and again.
        """
        wanted = min(len(buffer), self._info.size_bytes - self._position)
        if wanted <= 0:
            return 0
        attempts = Attempts(BODY_ATTEMPTS)
        while True:
            try:
                data = self._next(wanted)
                break
            except BROKEN_BODY as error:
                self._drop()
                pause_or_raise(self._info.uri, attempts, error)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        """Close the file, and give its connection back."""
        self._drop()
        super().close()

    def _next(self, wanted: int) -> bytes:
        if self._body is None:
            last = None if self._streams else self._position + wanted - 1
            self._body = self._get(self._position, last)
        data = self._body.read(wanted)
        if not self._streams:
            self._drop()
        return data

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


def pause_or_raise(uri: str, attempts: Attempts, error: Exception) -> None:
    """Wait before a body is asked for again, or give it up."""
    if not attempts.pause():
        raise StorageError(f"{uri}: {attempts} failed, the last one with: {error}; run again") from error
