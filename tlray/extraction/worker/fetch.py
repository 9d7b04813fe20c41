"""From a unit of the plan to pieces: fetched, decoded and resized images beside the rows that describe them.

Shape legend: B decoded images of a piece, H height, W width, C channels.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from tlray.config import SourceConfig
from tlray.errors import (
    GO_ON,
    AccessError,
    CredentialsError,
    ImageError,
    ImageErrorCode,
    ObjectNotFoundError,
    ObjectTooLargeError,
    SourceError,
    StoppedError,
    StorageError,
    StoreAwayError,
    TlrayError,
)
from tlray.extraction.plan.plan import Unit
from tlray.lake.image.decode import decode_image
from tlray.lake.source.shards import Member, read_members
from tlray.lake.storage.open import open_store
from tlray.lake.storage.store import Blob
from tlray.lake.table.parts import ERROR_FIELD, FIXED_FIELDS
from tlray.recipe import Preprocessing

FETCH_THREADS = 16
"""Concurrent GETs of one task: an object store answers in 10 to 50 ms, one core decodes an image in 1 to 5 ms."""

QUICK_SECONDS = 0.0005
"""A read in the mean, for which threads are not worth their while: they compete for the interpreter with those that compute. An
image from a local file took 135 microseconds of processor time with them and 50 without; disks and mounts may be slower."""

PIECE_BYTES = 64 * 2**20
"""Pixels of a piece: half of Ray Data's target block, so that two are in flight where one block would be."""

NOTES = 3
"""Failures of a piece that the log tells of."""

FETCH_ERRORS = (StorageError, AccessError, SourceError)
"""What may be one object's fault: gone, archived, forbidden, in a bucket that a manifest misspells. A store
that is away or credentials that expired are not, and end the run: else all images that are left would get failed rows."""

SECOND_LOOK_SECONDS = 0.1
"""Before asking again for an object that was listed and then not found: servers in between may have answered for the store."""

ROWS_SCHEMA = pa.schema([*FIXED_FIELDS, ERROR_FIELD])

Row = dict[str, Any]
"""Of a listing: uri, etag, label (str or None), size_bytes (int or None)."""


class FetchSpec(BaseModel):
    """What a worker needs to know to turn a unit into pieces.

    Attributes:
        kind: `Plan.kind`.
        source: the source's config.
        preprocessing: pixels to network input; only the geometry happens here.
        trust_listing: the listing's etag is a version that the user keeps (a manifest's), not the store's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["images", "webdataset", "parquet"]
    source: SourceConfig
    preprocessing: Preprocessing
    trust_listing: bool

    @property
    def piece_images(self) -> int:
        """Most images in a piece."""
        height, width = self.preprocessing.crop
        return max(1, min(512, PIECE_BYTES // (height * width * 3)))


@dataclass(frozen=True)
class Piece:
    """Images of one unit, or some of a shard's.

    Attributes:
        unit: index of the unit.
        index: its number within the unit.
        last: whether the unit has no more.
        rows: ROWS_SCHEMA; `error` is null where there are pixels.
        images_BHWC: uint8, one for each row without error, in the rows' order.
        seconds: by stage: `fetch` and `upload` were waited for the store; the others were busy, the CPU or a device.
        notes: details of the first few failures, for the log.
    """

    unit: int
    index: int
    last: bool
    rows: pa.Table
    images_BHWC: np.ndarray
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()


def fetch_unit(unit: Unit, spec: FetchSpec, stopped: Callable[[], bool] = lambda: False) -> Iterator[Piece]:
    """Fetch and decode the images of a unit.

    Args:
        unit: of the plan.
        spec: how.
        stopped: asked before each image, by several threads; once it says so the unit is dropped.

    Returns:
        Pieces in order; at least one, the last one marked.

    Raises:
        StorageError: the store failed in a way that is no single image's fault.
        StoppedError: `stopped` said so.
    """
    images = len(unit.items) if spec.kind == "images" else None
    return decode_members(fetch_members(unit.items, spec, stopped), unit.index, spec, images)


def decode_members(members: Iterable[Member], unit: int, spec: FetchSpec, images: int | None = None) -> Iterator[Piece]:
    """Decode fetched images into pieces of a unit; at least one, the last one marked.

    Args:
        members: fetched images.
        unit: index of the unit.
        spec: how.
        images: most that there can be, where it is known; memory is set aside for them.
    """
    builder = _Builder(unit, spec, spec.piece_images if images is None else min(images, spec.piece_images))
    upcoming = iter(members)
    while True:
        began = time.perf_counter()
        member = next(upcoming, None)
        builder.fetch_seconds += time.perf_counter() - began
        if member is None:
            break
        if builder.full:
            yield builder.take(last=False)
        builder.add(member)
    yield builder.take(last=True)


def fetch_members(items: pa.Table, spec: FetchSpec, stopped: Callable[[], bool] = lambda: False) -> Iterator[Member]:
    """The images of some items of a plan, in order, not yet decoded.

    A shard that cannot be read to its end closes with a failed row of its own URI, which the next run replaces: its etag
    has changed, or `fetch_failed` is tried again.

    Raises:
        StorageError, StoppedError: as `fetch_unit`.
    """
    members = _fetch_images(items, spec) if spec.kind == "images" else _read_shards(items, spec)
    for member in members:
        if stopped():
            raise StoppedError(f"the run was asked to stop; {GO_ON}")
        yield member


def _read_shards(items: pa.Table, spec: FetchSpec) -> Iterator[Member]:
    assert spec.kind != "images"
    for item in items.to_pylist():
        try:
            yield from read_members(spec.kind, item["uri"], item["etag"], spec.source)
        except FETCH_ERRORS as error:
            yield Member(item["uri"], item["etag"], None, _as_image_error(error))


def _fetch_images(items: pa.Table, spec: FetchSpec) -> Iterator[Member]:
    """Fetch in order: local files one after the other while that is quick, all else with many threads."""
    rows = deque(items.to_pylist())
    taken, seconds = 0, 0.0
    while rows and rows[0]["uri"].startswith("file:") and seconds <= QUICK_SECONDS * max(taken, FETCH_THREADS):
        began = time.perf_counter()
        member = _fetch_image(rows.popleft(), spec)
        taken, seconds = taken + 1, seconds + time.perf_counter() - began
        yield member
    if rows:
        yield from _fetch_with_threads(rows, spec)


def _fetch_with_threads(rows: Sequence[Row], spec: FetchSpec) -> Iterator[Member]:
    """Fetch in order, holding at most a few images more than there are threads."""
    threads = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch")
    upcoming = (threads.submit(_fetch_image, row, spec) for row in rows)
    pending = deque(islice(upcoming, 2 * FETCH_THREADS))
    try:
        while pending:
            member = pending.popleft().result()
            pending.extend(islice(upcoming, 1))
            yield member
    finally:
        threads.shutdown(wait=False, cancel_futures=True)  # who stops in the middle does not wait for a slow store


def _fetch_image(row: Row, spec: FetchSpec) -> Member:
    uri, etag, label = str(row["uri"]), row["etag"], row["label"]
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
    return Member(uri, str(etag) if etag is not None else "", str(label) if label is not None else None, data)


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
    """What becomes of an object's failure.

    Raises:
        StorageError: it is none of this object's.
    """
    if isinstance(error, CredentialsError):
        raise StorageError(f"{error}; then {GO_ON}") from error
    if isinstance(error, StoreAwayError):
        raise error
    if isinstance(error, ObjectTooLargeError):
        return ImageError(ImageErrorCode.TOO_LARGE, str(error))
    if isinstance(error, (ObjectNotFoundError, SourceError)):
        return ImageError(ImageErrorCode.NOT_FOUND, str(error))
    return ImageError(ImageErrorCode.FETCH_FAILED, str(error))


@dataclass
class _Builder:
    """Collects a piece, each image decoded into its place; what failed images leave free at the end is never touched."""

    unit: int
    spec: FetchSpec
    capacity: int
    index: int = 0
    rows: list[dict[str, object]] = field(default_factory=list)
    images_BHWC: np.ndarray | None = None
    decoded: int = 0
    notes: list[str] = field(default_factory=list)
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def full(self) -> bool:
        return len(self.rows) >= self.spec.piece_images

    def add(self, member: Member) -> None:
        row: dict[str, object] = {"uri": member.uri, "etag": member.etag, "label": member.label}
        began = time.thread_time()
        try:
            if isinstance(member.data, ImageError):
                raise member.data
            image = decode_image(member.data, self.spec.preprocessing, max_pixels=self.spec.source.max_image_pixels)
        except ImageError as error:
            self.rows.append({**row, "error": str(error.code)})
            self.notes.append(f"{member.uri}: {error}")
        else:
            self.rows.append({**row, "width": image.width, "height": image.height})
            if self.images_BHWC is None:
                self.images_BHWC = self._room(self.capacity)
            self.images_BHWC[self.decoded] = image.pixels_HWC
            self.decoded += 1
        self.decode_seconds += time.thread_time() - began

    def _room(self, images: int) -> np.ndarray:
        return np.empty((images, *self.spec.preprocessing.crop, 3), np.uint8)

    def take(self, *, last: bool) -> Piece:
        piece = Piece(
            self.unit,
            self.index,
            last,
            pa.Table.from_pylist(self.rows, ROWS_SCHEMA),
            self._room(0) if self.images_BHWC is None else self.images_BHWC[: self.decoded],
            {"fetch": self.fetch_seconds, "decode": self.decode_seconds},
            tuple(self.notes[:NOTES]),
        )
        self.rows, self.notes = [], []
        self.images_BHWC, self.decoded = None, 0
        self.index += 1
        self.fetch_seconds = self.decode_seconds = 0.0
        return piece
