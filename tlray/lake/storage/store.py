r"""The one seam to where bytes are: URIs, and a store for each scheme with the same few methods.

URIs are literal: no percent-encoding, and an S3 key follows its bucket verbatim. A URI names one object, or the folder
of everything below `<uri>/`; so `s3://b/photos` does not reach into `s3://b/photos2/`.

A local file name that is not UTF-8 has its odd bytes written as `\xNN` in its URI, and is found again by it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc

LISTING_SCHEMA = pa.schema([("uri", pa.string()), ("etag", pa.string()), ("size_bytes", pa.int64())])
READ_BUFFER_BYTES = 2**20
"""Least that a ranged or sequential read asks for: on S3 a request's latency is that of about a MiB of body."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store says of an object.

    Attributes:
        uri: its name.
        etag: changes with its bytes (locally `<size>-<mtime in ns>`).
        size_bytes: its length.
        modified_seconds: since 1970, when it was written, by the store's clock; `stat` alone says it.
        commit: of which it is that object, in a store that keeps commits; `stat` alone says it.
    """

    uri: str
    etag: str
    size_bytes: int
    modified_seconds: float | None = field(default=None, compare=False)
    commit: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Blob:
    """An object's bytes and the etag of exactly these bytes."""

    data: bytes
    etag: str


NoObject = Literal["path_too_long", "broken_link", "not_a_file"]
"""Why a name that a folder has cannot be listed as an object: the operating system takes no path of that length; it links to
nothing, or to itself; it is a socket, a pipe or a device."""


@dataclass(frozen=True, slots=True)
class Walk:
    """How a caller wants a tree of folders to be listed, and what else it is told; a store takes what it has a use for.

    Attributes:
        enters: whether to look into a folder, by its URI, which ends in `/`.
        passed_over: told of each name that cannot be listed: why, and its URI.
        is_of: told which commit is listed, by a store that keeps commits.
    """

    enters: Callable[[str], bool]
    passed_over: Callable[[NoObject, str], None]
    is_of: Callable[[str], None] = lambda _commit: None


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

    def list(
        self, uri: str, *, first: str | None = None, end: str | None = None, walk: Walk | None = None
    ) -> Iterator[pa.Table]:
        """List everything below the folder `uri`, or the one object.

        Args:
            uri: of the folder or object.
            first: leave out names before this URI.
            end: leave out this one and names after it.
            walk: how to go through folders. Without it all are entered, a name that cannot be listed for the length of its
                path is an error, and others that are no objects are left out.

        Yields:
            Pages of LISTING_SCHEMA, none empty, in no promised order; no page where nothing is there. Directory markers
            (keys that end in `/`) are left out.
        """
        ...

    def stat(self, uri: str) -> ObjectInfo | None:
        """Tell one object's etag and size; None where there is no object of that name."""
        ...

    def read(self, uri: str, *, max_bytes: int | None = None, if_match: str | None = None) -> Blob:
        """Read a whole object into memory.

        Args:
            uri: of the object.
            max_bytes: refuse a larger one before its body is read.
            if_match: the etag that it must still have.

        Raises:
            ObjectTooLargeError: it is larger than `max_bytes`.
        """
        ...

    def open(self, uri: str, *, if_match: str | None = None) -> BinaryIO:
        """Open an object for reading parts of it; it is seekable, and fetches ranges of at least READ_BUFFER_BYTES."""
        ...

    def stream(self, uri: str, *, if_match: str | None = None) -> tuple[BinaryIO, str]:
        """Open a large object for reading it from front to back, and tell its etag.

        A connection that breaks is resumed where it broke.
        """
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


def in_range(page: pa.Table, first: str | None, end: str | None) -> pa.Table:
    """Rows of a listing whose URI is not before `first` and before `end`."""
    if first is not None:
        page = page.filter(pc.greater_equal(page["uri"], first))
    return page if end is None else page.filter(pc.less(page["uri"], end))


def pages_of(found: Sequence[ObjectInfo], first: str | None, end: str | None) -> Iterator[pa.Table]:
    """Objects as a page of a listing, of those whose URI is not before `first` and before `end`; none if that is none."""
    columns = [[one.uri for one in found], [one.etag for one in found], [one.size_bytes for one in found]]
    page = in_range(pa.table(columns, schema=LISTING_SCHEMA), first, end)
    if len(page):
        yield page
