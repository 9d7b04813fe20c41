"""From a unit of the plan to pieces: fetched, decoded and resized images beside the rows that describe them.

Shape legend: B decoded images of a piece, H height, W width, C channels.
"""

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from tlray.config import SourceConfig
from tlray.errors import (
    AccessError,
    ImageError,
    ImageErrorCode,
    ObjectNotFoundError,
    ObjectTooLargeError,
    SourceError,
    StorageError,
    TlrayError,
)
from tlray.lake.containers import Member, read_members
from tlray.lake.images import decode_image
from tlray.lake.parts import ERROR_FIELD, FIXED_FIELDS
from tlray.lake.plan import Unit
from tlray.lake.storage import open_store
from tlray.recipe import Preprocessing

FETCH_THREADS = 16
"""Concurrent GETs of one task: an object store answers in 10 to 50 ms, one core decodes an image in 1 to 5 ms."""

PIECE_BYTES = 64 * 2**20
"""Pixels of a piece: half of Ray Data's target block, so that two are in flight where one block would be."""

FETCH_ERRORS = (StorageError, AccessError, SourceError)
"""What may be one object's fault: gone, archived, forbidden, in a bucket that a manifest misspells. Credentials that end in the
middle of a run make every image fail; then `max_failed_fraction` ends it, and `fetch_failed` is tried again by the next."""

ROWS_SCHEMA = pa.schema([*FIXED_FIELDS, ERROR_FIELD])


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
        seconds: busy time by stage.
        notes: details of the first few failures, for the log.
    """

    unit: int
    index: int
    last: bool
    rows: pa.Table
    images_BHWC: np.ndarray
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()


def fetch_unit(unit: Unit, spec: FetchSpec) -> Iterator[Piece]:
    """Fetch and decode the images of a unit.

    Args:
        unit: of the plan.
        spec: how.

    Returns:
        Pieces in order; at least one, the last one marked.

    Raises:
        StorageError: the store failed in a way that is no single image's fault.
    """
    return decode_members(fetch_members(unit.items, spec), unit.index, spec)


def decode_members(members: Iterable[Member], unit: int, spec: FetchSpec) -> Iterator[Piece]:
    """Decode fetched images into pieces of a unit; at least one, the last one marked."""
    builder = _Builder(unit, spec)
    for member in members:
        if builder.full:
            yield builder.take(last=False)
        builder.add(member)
    yield builder.take(last=True)


def fetch_members(items: pa.Table, spec: FetchSpec) -> Iterator[Member]:
    """The images of some items of a plan, in order, not yet decoded.

    A shard that cannot be read to its end closes with a failed row of its own URI, which the next run replaces: its etag
    has changed, or `fetch_failed` is tried again.
    """
    if spec.kind == "images":
        yield from _fetch_images(items, spec)
        return
    for item in items.to_pylist():
        try:
            yield from read_members(spec.kind, item["uri"], item["etag"], spec.source)
        except FETCH_ERRORS as error:
            yield Member(item["uri"], item["etag"], None, _as_image_error(error))


def _fetch_images(items: pa.Table, spec: FetchSpec) -> Iterator[Member]:
    """Fetch with many threads, in order, holding at most a few images more than there are threads."""
    rows = items.to_pylist()
    with ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch") as threads:
        pending = [threads.submit(_fetch_image, row, spec) for row in rows[: 2 * FETCH_THREADS]]
        for index in range(len(rows)):
            member = pending[index].result()
            pending[index] = None  # type: ignore[call-overload]  # frees the bytes of what was yielded
            ahead = index + 2 * FETCH_THREADS
            if ahead < len(rows):
                pending.append(threads.submit(_fetch_image, rows[ahead], spec))
            yield member


def _fetch_image(row: dict[str, str | int | None], spec: FetchSpec) -> Member:
    uri, etag, label = str(row["uri"]), row["etag"], row["label"]
    data: bytes | ImageError
    limit = spec.source.max_image_bytes
    try:
        if isinstance(row["size_bytes"], int) and row["size_bytes"] > limit:
            raise ObjectTooLargeError(f"{row['size_bytes']} bytes, more than max_image_bytes {limit}")
        blob = open_store(uri).read(uri, max_bytes=limit)
        data = blob.data
        # The version that was read, should the object have been replaced since it was listed.
        etag = etag if spec.trust_listing and etag else blob.etag
    except FETCH_ERRORS as error:
        data = _as_image_error(error)
    return Member(uri, str(etag) if etag is not None else "", str(label) if label is not None else None, data)


def _as_image_error(error: TlrayError) -> ImageError:
    if isinstance(error, ObjectTooLargeError):
        return ImageError(ImageErrorCode.TOO_LARGE, str(error))
    if isinstance(error, (ObjectNotFoundError, SourceError)):
        return ImageError(ImageErrorCode.NOT_FOUND, str(error))
    return ImageError(ImageErrorCode.FETCH_FAILED, str(error))


@dataclass
class _Builder:
    """Collects a piece."""

    unit: int
    spec: FetchSpec
    index: int = 0
    rows: list[dict[str, object]] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    decode_seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @property
    def full(self) -> bool:
        return len(self.rows) >= self.spec.piece_images

    def add(self, member: Member) -> None:
        row: dict[str, object] = {"uri": member.uri, "etag": member.etag, "label": member.label}
        began = time.perf_counter()
        try:
            if isinstance(member.data, ImageError):
                raise member.data
            image = decode_image(member.data, self.spec.preprocessing, max_pixels=self.spec.source.max_image_pixels)
        except ImageError as error:
            self.rows.append({**row, "error": str(error.code)})
            self.notes.append(f"{member.uri}: {error}")
        else:
            self.rows.append({**row, "width": image.width, "height": image.height})
            self.images.append(image.pixels_HWC)
        self.decode_seconds += time.perf_counter() - began

    def take(self, *, last: bool) -> Piece:
        height, width = self.spec.preprocessing.crop
        images = np.stack(self.images) if self.images else np.empty((0, height, width, 3), np.uint8)
        total_seconds = time.perf_counter() - self.started
        piece = Piece(
            self.unit,
            self.index,
            last,
            pa.Table.from_pylist(self.rows, ROWS_SCHEMA),
            images,
            {"fetch": total_seconds - self.decode_seconds, "decode": self.decode_seconds},
            tuple(self.notes[:3]),
        )
        self.rows, self.images, self.notes = [], [], []
        self.index += 1
        self.decode_seconds, self.started = 0.0, time.perf_counter()
        return piece
