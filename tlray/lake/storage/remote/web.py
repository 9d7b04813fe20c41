"""The store of `https://` (see `tlray.lake.storage.store.Store`): what web servers give to everybody, only read.

There are no folders: images are named by a manifest or a listing. A URI is the URL as it stands, percent-encoded as the web
has it.
"""

import hashlib
import io
import tempfile
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import BinaryIO, cast

import pyarrow as pa
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from tlray.errors import (
    DISK_FULL,
    ObjectChangedError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    SourceError,
    StorageError,
)
from tlray.lake.storage.remote.read_only import ReadOnlyStore
from tlray.lake.storage.remote.requests import NoHeadError, answer_to
from tlray.lake.storage.retry import BODY_ATTEMPTS, Attempts
from tlray.lake.storage.store import Blob, ObjectInfo, Walk, pages_of

_BLOCK_BYTES = 2**18

GRACE_SECONDS = 60.0
LEAST_BYTES_PER_SECOND = 20_000
"""A body that is slower than this on average, after the grace, is given up: a server that drips on purpose must not hold a
worker for days."""

MOST_UNANNOUNCED_BYTES = 2**30
"""The most that is read of a whole file, such as a manifest, whose length the server does not say: it may never end."""


class WebStore(ReadOnlyStore):
    """Objects on web servers, by GET and HEAD."""

    def list(
        self,
        uri: str,
        *,
        first: str | None = None,
        end: str | None = None,
        walk: Walk | None = None,  # noqa: ARG002 - the web has no folders
    ) -> Iterator[pa.Table]:
        """List the one object (see `Store.list`).

        Raises:
            SourceError: it is not there: the web has no folders.
        """
        info = self.stat(uri)
        if info is None:
            raise SourceError(
                f"{uri} is not there, or a folder, which the web cannot list; name its files in a manifest (.csv, .tsv, "
                ".parquet), or in a list with --source.listing"
            )
        yield from pages_of([info], first, end)

    def stat(self, uri: str) -> ObjectInfo | None:
        """Tell an object's etag and size (see `Store.stat`); 0 where the server does not say the size."""
        try:
            with answer_to("HEAD", uri) as answer:
                return _info(uri, answer.headers)
        except ObjectNotFoundError:
            return None
        except NoHeadError:
            with answer_to("GET", uri) as answer:
                return _info(uri, answer.headers)

    def read(self, uri: str, *, max_bytes: int | None = None, if_match: str | None = None) -> Blob:
        """Read a whole object (see `Store.read`); one of unknown length is read up to the limit."""
        data = io.BytesIO()
        headers = self._fetch(uri, data, max_bytes, if_match)
        body = data.getvalue()
        return Blob(body, _version(headers) or f"sha256-{hashlib.sha256(body).hexdigest()}")

    def open(self, uri: str, *, if_match: str | None = None) -> BinaryIO:
        """Open an object (see `Store.open`): a copy of it on local disk, which is gone when it is closed."""
        return self.stream(uri, if_match=if_match)[0]

    def stream(self, uri: str, *, if_match: str | None = None) -> tuple[BinaryIO, str]:
        """Open an object and tell its etag (see `Store.stream`); as `open`."""
        copy = cast("BinaryIO", tempfile.TemporaryFile(prefix="tlray-"))  # noqa: SIM115 - the caller closes it
        try:
            headers = self._fetch(uri, copy, None, if_match)
            copy.seek(0)
        except OSError as error:
            copy.close()
            full = "there is no room on the local disk" if error.errno in DISK_FULL else str(error)
            raise StorageError(f"{uri}: {full}") from error
        except BaseException:
            copy.close()
            raise
        return copy, _info(uri, headers).etag

    def _fetch(self, uri: str, into: BinaryIO, max_bytes: int | None, if_match: str | None) -> Mapping[str, str]:
        """Write an object's bytes; one whose body breaks off is asked for again. Returns the answer's headers."""
        attempts = Attempts(BODY_ATTEMPTS)
        while True:
            with answer_to("GET", uri) as answer:
                info = _info(uri, answer.headers)
                if if_match not in (None, info.etag):
                    raise ObjectChangedError(
                        f"{uri} has the etag {info.etag}, expected {if_match}: it changed since it was listed"
                    )
                announced = "Content-Length" in answer.headers
                limit = max_bytes if max_bytes is not None or announced else MOST_UNANNOUNCED_BYTES
                if limit is not None and info.size_bytes > limit:
                    raise ObjectTooLargeError(f"{uri} has {info.size_bytes} bytes, more than the limit of {limit}")
                into.seek(0)
                into.truncate()
                try:
                    _copy(uri, answer, into, limit)
                    return answer.headers
                except HTTPError as error:
                    broken = error
            if not attempts.pause():
                raise StorageError(f"{uri}: {attempts} failed, the last one with: {broken}") from broken


def _copy(uri: str, answer: BaseHTTPResponse, into: BinaryIO, limit: int | None) -> None:
    """Read a body while it is neither too long nor too slow."""
    began, got = time.monotonic(), 0
    while block := answer.read1(_BLOCK_BYTES):
        got += len(block)
        if limit is not None and got > limit:
            raise ObjectTooLargeError(f"{uri} has more bytes than the limit of {limit}")
        seconds = time.monotonic() - began
        if seconds > GRACE_SECONDS + got / LEAST_BYTES_PER_SECOND:
            raise StorageError(f"{uri}: {got} bytes in {seconds:.0f} s; given up, as the server is too slow")
        into.write(block)


def _info(uri: str, headers: Mapping[str, str]) -> ObjectInfo:
    size, modified = headers.get("Content-Length", ""), headers.get("Last-Modified")
    size_bytes = int(size) if size.isdecimal() and "Content-Encoding" not in headers else 0
    try:
        modified_seconds = parsedate_to_datetime(modified).timestamp() if modified else None
    except ValueError:
        modified_seconds = None
    return ObjectInfo(uri, _version(headers) or f"size-{size_bytes}", size_bytes, modified_seconds)


def _version(headers: Mapping[str, str]) -> str | None:
    """What changes with the bytes, as the server says it: ETag, else Last-Modified (RFC 9110, 8.8)."""
    etag, modified = headers.get("ETag", "").strip(), headers.get("Last-Modified", "").strip()
    if etag.replace("W/", "", 1).strip('"'):
        return etag.replace('"', "")
    return f"modified {modified}" if modified else None
