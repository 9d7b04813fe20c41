"""The bytes of the items of a source, in order: of files by many threads, of shards as they stream, or why there are none."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pyarrow as pa

from tlray.errors import (
    GO_ON,
    AccessError,
    CredentialsError,
    ImageError,
    ImageErrorCode,
    ObjectNotFoundError,
    ObjectTooLargeError,
    SourceError,
    StorageError,
    StoreAwayError,
    TlrayError,
)
from tlray.lake.source.containers.fetched_image import FetchedImage
from tlray.lake.source.containers.members import read_members
from tlray.lake.source.read_spec import ReadSpec
from tlray.lake.source.texts.rows import FAULT, TEXT
from tlray.lake.storage.open import open_store
from tlray.lake.storage.store import Blob

FETCH_THREADS = 16
"""Concurrent GETs of one task: an object store answers in 10 to 50 ms, one core decodes an image in 1 to 5 ms."""

QUICK_SECONDS = 0.0005
"""Local files that take less than this to read, on average, are read without threads, which would compete for the interpreter
with those that compute; slower disks and network mounts get threads."""

FETCH_ERRORS = (StorageError, AccessError, SourceError)
"""What may be one object's fault: gone, archived, forbidden, in a bucket that a manifest misspells. A store
that is away or credentials that expired are not, and end the run: else all images that are left would get failed rows."""

SECOND_LOOK_SECONDS = 0.1
"""Before asking again for an object that was listed and then not found: servers in between may have answered for the store."""

Row = dict[str, Any]
"""A row of a listing: uri, etag, label (str or None), size_bytes (int or None)."""


def fetch_images(items: pa.Table, spec: ReadSpec) -> Iterator[FetchedImage]:
    """The bytes of the images of some items, in order.

    A shard that cannot be read to its end closes with a failed image of the shard's own URI, which the next run replaces: its
    etag has changed, or `fetch_failed` is tried again.

    Raises:
        StorageError: the store failed in a way that is no single image's fault.
    """
    return _fetch_files(items, spec) if spec.kind == "images" else _read_shards(items, spec)


def _read_shards(items: pa.Table, spec: ReadSpec) -> Iterator[FetchedImage]:
    assert spec.kind != "images"
    for item in items.to_pylist():
        try:
            yield from read_members(spec.kind, item["uri"], item["etag"], spec.source, spec.columns)
        except FETCH_ERRORS as error:
            yield FetchedImage(item["uri"], item["etag"], None, _as_image_error(error))


def _fetch_files(items: pa.Table, spec: ReadSpec) -> Iterator[FetchedImage]:
    """Fetch in order: local files one after the other while that is quick, all else with many threads."""
    rows = deque(items.to_pylist())
    taken, seconds = 0, 0.0
    while (
        rows
        and (rows[0]["uri"].startswith("file:") or TEXT in rows[0])
        and seconds <= QUICK_SECONDS * max(taken, FETCH_THREADS)
    ):
        began = time.perf_counter()
        image = _fetch_file(rows.popleft(), spec)
        taken, seconds = taken + 1, seconds + time.perf_counter() - began
        yield image
    if rows:
        yield from _fetch_with_threads(rows, spec)


def _fetch_with_threads(rows: Sequence[Row], spec: ReadSpec) -> Iterator[FetchedImage]:
    """Fetch in order, holding at most a few images more than there are threads."""
    threads = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch")
    upcoming = (threads.submit(_fetch_file, row, spec) for row in rows)
    pending = deque(islice(upcoming, 2 * FETCH_THREADS))
    try:
        while pending:
            image = pending.popleft().result()
            pending.extend(islice(upcoming, 1))
            yield image
    finally:
        threads.shutdown(wait=False, cancel_futures=True)  # who stops in the middle does not wait for a slow store


def _fetch_file(row: Row, spec: ReadSpec) -> FetchedImage:
    uri, etag, label = str(row["uri"]), row["etag"], row["label"]
    values = {column.name: row.get(column.name) for column in spec.columns}
    if TEXT in row:
        return FetchedImage(uri, str(etag), label, _text_of(row, spec.source.max_image_bytes), values)
    data: bytes | ImageError
    limit = spec.source.max_image_bytes
    try:
        if isinstance(row["size_bytes"], int) and row["size_bytes"] > limit:
            raise ObjectTooLargeError(f"{row['size_bytes']} bytes, more than max_image_bytes {limit}")
        blob = _read(uri, limit, was_listed=not spec.trust_listing)
        data = blob.data
        # The version that was read, should the object have been replaced since it was listed.
        etag = etag if spec.trust_listing and etag else blob.etag
    except FETCH_ERRORS as error:
        data = _as_image_error(error)
    return FetchedImage(uri, str(etag) if etag is not None else "", str(label) if label is not None else None, data, values)


def _text_of(row: Row, limit: int) -> bytes | ImageError:
    """The text of a row that is its listing's own, or why there is none."""
    if row[FAULT] is not None:
        code, _, detail = row[FAULT].partition(": ")
        return ImageError(ImageErrorCode(code), detail)
    if row[TEXT] is None:
        return ImageError(ImageErrorCode.EMPTY, "null instead of a text")
    if len(row[TEXT]) > limit:
        return ImageError(ImageErrorCode.TOO_LARGE, f"{len(row[TEXT])} bytes, more than max_image_bytes {limit}")
    text: bytes = row[TEXT]
    return text


def _read(uri: str, limit: int, *, was_listed: bool) -> Blob:
    store = open_store(uri)
    try:
        return store.read(uri, max_bytes=limit)
    except ObjectNotFoundError:
        if not was_listed:
            raise
    time.sleep(SECOND_LOOK_SECONDS)
    return store.read(uri, max_bytes=limit)


def _as_image_error(error: TlrayError) -> ImageError:
    """Turn a failed fetch into the error of the one image that it concerns.

    Raises:
        StorageError: it is none of this object's.
    """
    if isinstance(error, CredentialsError):
        said = str(error)
        raise StorageError(said if GO_ON in said else f"{said}; then {GO_ON}") from error
    if isinstance(error, StoreAwayError):
        raise error
    if isinstance(error, ObjectTooLargeError):
        return ImageError(ImageErrorCode.TOO_LARGE, str(error))
    if isinstance(error, (ObjectNotFoundError, SourceError)):
        return ImageError(ImageErrorCode.NOT_FOUND, str(error))
    return ImageError(ImageErrorCode.FETCH_FAILED, str(error))
