r"""The one seam to where bytes are: URIs, and a store for each scheme with the same few methods.

URIs are literal: no percent-encoding, and an S3 key follows its bucket verbatim. A URI names one object, or the folder
of everything below `<uri>/`; so `s3://b/photos` does not reach into `s3://b/photos2/`.

A local file name that is not UTF-8 has its odd bytes written as `\xNN` in its URI, and is found again by it.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from tlray.errors import SourceError

LISTING_SCHEMA = pa.schema([("uri", pa.string()), ("etag", pa.string()), ("size_bytes", pa.int64())])
READ_BUFFER_BYTES = 2**20
"""Least that a ranged or sequential read asks for: on S3 a request's latency is that of about a MiB of body."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_SCHEMES = {"file": "file", "s3": "s3", "s3a": "s3", "s3n": "s3"}


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store says of an object.

    Attributes:
        uri: its name.
        etag: changes with its bytes (locally `<size>-<mtime in ns>`).
        size_bytes: its length.
        modified_seconds: since 1970, when it was written, by the store's clock; `stat` alone says it.
    """

    uri: str
    etag: str
    size_bytes: int
    modified_seconds: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Blob:
    """An object's bytes and the etag of exactly these bytes."""

    data: bytes
    etag: str


class Store(Protocol):
    """What tlray asks of a place that keeps objects. All methods may be called from many threads; stores can be pickled.

    Every method raises:
        AccessError: the credentials or permissions do not allow it.
        SourceError: the bucket does not exist.
        StorageError: the store failed, retries included.
    Those that name one object also raise:
        ObjectNotFoundError: it is not there, or is a folder.
        ObjectChangedError: its etag is not `if_match`, or it was replaced while it was read.
    """

    def list(self, uri: str, *, first: str | None = None, end: str | None = None) -> Iterator[pa.Table]:
        """Everything below the folder `uri`, or the one object.

        Args:
            uri: of the folder or object.
            first: leave out names before this URI.
            end: leave out this one and names after it.

        Yields:
            Pages of LISTING_SCHEMA, none empty, in no promised order; no page where nothing is there. Directory markers
            (keys that end in `/`) are left out.
        """
        ...

    def stat(self, uri: str) -> ObjectInfo | None:
        """One object's etag and size, or None where there is no object of that name."""
        ...

    def read(self, uri: str, *, max_bytes: int | None = None, if_match: str | None = None) -> Blob:
        """A whole object.

        Args:
            uri: of the object.
            max_bytes: refuse a larger one before its body is read.
            if_match: the etag that it must still have.

        Raises:
            ObjectTooLargeError: it is larger than `max_bytes`.
        """
        ...

    def open(self, uri: str, *, if_match: str | None = None) -> BinaryIO:
        """A seekable reader for parts of an object; it fetches ranges of at least READ_BUFFER_BYTES."""
        ...

    def stream(self, uri: str, *, if_match: str | None = None) -> tuple[BinaryIO, str]:
        """A sequential reader of a large object, and its etag; a connection that breaks is resumed where it broke."""
        ...

    def write(self, uri: str, data: bytes | memoryview, *, if_absent: bool = False, if_match: str | None = None) -> bool:
        """Write an object whole or not at all, with the folders above it.

        Args:
            uri: of the object.
            data: all of it.
            if_absent: leave an object alone that is already there.
            if_match: the etag that the object must still have.

        Returns:
            False where a condition does not hold. After a lost answer and a retry that may be this very call's doing.
        """
        ...

    def delete(self, uris: Iterable[str]) -> None:
        """Delete objects; those that are not there are fine.

        Raises:
            StorageError: some could not be deleted; the others were.
        """
        ...


def to_uri(text: str) -> str:
    """The normal form of what a user may write for a place.

    A text without a scheme is a local path: `~` is expanded and it is made absolute. `s3a://` and `s3n://` become `s3://`.

    Raises:
        SourceError: empty, or of another scheme.
    """
    if not text:
        raise SourceError("a URI is empty; expected s3://bucket/key or a local path")
    match = _SCHEME.match(text)
    if match is None:
        return "file://" + printable(os.path.abspath(os.path.expanduser(text)))  # noqa: PTH100, PTH111 - keep `\\xNN` bytes
    scheme, rest = _SCHEMES.get(match[1].lower()), match[2]
    if scheme is None:
        raise SourceError(f"{text!r} has the scheme {match[1]!r}; expected s3://bucket/key, file:///path or a local path")
    if scheme == "file" and not rest.startswith("/"):
        raise SourceError(f"{text!r} is not an absolute file URI; expected file:///path, or the path without a scheme")
    if scheme == "s3" and not rest.partition("/")[0]:
        raise SourceError(f"{text!r} names no bucket; expected s3://bucket/key")
    return f"{scheme}://{rest}"


def to_path(uri: str) -> Path:
    """The path of a `file://` URI.

    Raises:
        SourceError: it is of another scheme.
    """
    if not uri.startswith("file:///"):
        raise SourceError(f"{uri!r} is not a local file; expected file:///path")
    return Path(uri.removeprefix("file://"))


def join(uri: str, *parts: str) -> str:
    """`uri` and the parts below it, with one `/` between each; nothing is encoded or resolved."""
    for part in parts:
        uri = uri + part if uri.endswith("/") else f"{uri}/{part}"
    return uri


def split_s3(uri: str) -> tuple[str, str]:
    """Bucket and key of an `s3://` URI; the key is empty for a bucket."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def printable(name: str) -> str:
    r"""A file or tar member name as valid Unicode: bytes that Python could not decode become `\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def open_store(uri: str) -> Store:
    """The store of a URI's scheme; it serves every URI of that scheme, and costs nothing to open.

    Raises:
        SourceError: the scheme is neither `file` nor `s3`.
    """
    if to_uri(uri).startswith("s3://"):
        from tlray.lake.storage.s3.store import S3Store  # local work does not pay for importing boto3

        return S3Store()
    from tlray.lake.storage.local import LocalStore

    return LocalStore()


def delta_options(uri: str) -> dict[str, str]:
    """What the `deltalake` package needs as `storage_options` to reach `uri` as boto3 does.

    Credentials that expire are a snapshot: ask again for each commit.

    Returns:
        Nothing for a local URI.

    Raises:
        AccessError: there are no AWS credentials.
        SourceError: the bucket does not exist.
        StorageError: S3 cannot be reached.
    """
    if not to_uri(uri).startswith("s3://"):
        return {}
    from tlray.lake.storage.s3.store import delta_options as of_s3

    return of_s3(uri)


def in_range(page: pa.Table, first: str | None, end: str | None) -> pa.Table:
    """Rows of a listing whose URI is not before `first` and before `end`."""
    if first is not None:
        page = page.filter(pc.greater_equal(page["uri"], first))
    return page if end is None else page.filter(pc.less(page["uri"], end))
