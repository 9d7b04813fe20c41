"""From items of a source to pixels or texts: fetch, decode, resize; each beside a row that describes it, or says what failed.

Shape legend: B decoded images or texts of a batch, H height, W width, C channels.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Self

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from tlray.columns.column import Column
from tlray.columns.values import fitting
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
    StorageError,
    StoreAwayError,
    TlrayError,
)
from tlray.lake.image.decode import decode_image
from tlray.lake.source.containers.fetched_image import FetchedImage
from tlray.lake.source.containers.members import read_members
from tlray.lake.source.source import Kind, Source
from tlray.lake.source.texts.decode import decode_text
from tlray.lake.source.texts.rows import FAULT, TEXT
from tlray.lake.storage.open import open_store
from tlray.lake.storage.store import Blob
from tlray.lake.table.parts import ERROR_FIELD, FIXED_FIELDS
from tlray.recipe import IMAGE_RULE, ImageRule, Preprocessing

FETCH_THREADS = 16
"""Concurrent GETs of one task: an object store answers in 10 to 50 ms, one core decodes an image in 1 to 5 ms."""

QUICK_SECONDS = 0.0005
"""Local files that take less than this to read, on average, are read without threads, which would compete for the interpreter
with those that compute; slower disks and network mounts get threads."""

BATCH_BYTES = 64 * 2**20
"""Pixels of a batch: half of Ray Data's target block, so that two are in flight where one block would be."""

MOST_BATCH_IMAGES = 512
MOST_BATCH_TEXTS = 4096
"""Texts of a unit: their vectors fill a part of a few MB."""

NOTES = 3
"""Failures of a batch that the log tells of."""

FETCH_ERRORS = (StorageError, AccessError, SourceError)
"""What may be one object's fault: gone, archived, forbidden, in a bucket that a manifest misspells. A store
that is away or credentials that expired are not, and end the run: else all images that are left would get failed rows."""

SECOND_LOOK_SECONDS = 0.1
"""Before asking again for an object that was listed and then not found: servers in between may have answered for the store."""

ROWS_SCHEMA = pa.schema([*FIXED_FIELDS, ERROR_FIELD])

Row = dict[str, Any]
"""Of a listing: uri, etag, label (str or None), size_bytes (int or None)."""


class ReadSpec(BaseModel):
    """What it takes to turn a source's items into pixels or texts; crosses to workers as JSON.

    Attributes:
        kind: what an item is: an image, or a file that holds images.
        source: its labels, columns and limits.
        preprocessing: from an image to network input; only the geometry happens here. None where items are texts.
        trust_listing: the listing's etag is a version that the user keeps (a manifest's), not the store's own.
        image_rule: version of the rule from bytes to pixels, from the recipe.
        columns: that travel, and whose values rows have.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    source: SourceConfig
    preprocessing: Preprocessing | None
    trust_listing: bool
    image_rule: ImageRule = IMAGE_RULE
    columns: tuple[Column, ...] = ()

    @classmethod
    def of(
        cls,
        source: Source,
        preprocessing: Preprocessing | None,
        image_rule: ImageRule = IMAGE_RULE,
        columns: tuple[Column, ...] = (),
    ) -> Self:
        """The spec for the items that a source lists."""
        return cls(
            kind=source.kind,
            # The texts of rows travel as UTF-8, however their file is encoded.
            source=source.config.model_copy(update={"encoding": "utf-8"}) if source.format == "rows" else source.config,
            preprocessing=preprocessing,
            trust_listing=source.format == "manifest",
            image_rule=image_rule,
            columns=columns,
        )

    @property
    def batch_images(self) -> int:
        """Most images that are decoded into one batch."""
        if self.preprocessing is None:
            return MOST_BATCH_TEXTS
        height, width = self.preprocessing.crop
        return max(1, min(MOST_BATCH_IMAGES, BATCH_BYTES // (height * width * 3)))

    def room(self, count: int) -> np.ndarray:
        """Room for so many decoded items: images_BHWC, uint8, or texts_B, objects."""
        if self.preprocessing is None:
            return np.empty(count, object)
        return np.empty((count, *self.preprocessing.crop, 3), np.uint8)

    def decode(self, data: bytes) -> tuple[np.ndarray | str, dict[str, int]]:
        """Pixels_HWC of an image and its size by column, or a text.

        Raises:
            ImageError: it cannot be used.
        """
        if self.preprocessing is None:
            return decode_text(data, self.source.encoding), {}
        limit = self.source.max_image_pixels
        decoded = decode_image(data, self.preprocessing, max_pixels=limit, image_rule=self.image_rule)
        return decoded.pixels_HWC, {"width": decoded.width, "height": decoded.height}


@dataclass(frozen=True)
class DecodedImages:
    """A batch of images, decoded and resized, and the rows that describe them.

    Attributes:
        rows: ROWS_SCHEMA and the columns that travel, those of failed images included; `error` is null where there is an input.
        inputs: images_BHWC, uint8, or texts_B, objects: one for each row without error, in the rows' order.
        is_last: whether nothing follows.
        seconds: `fetch`, waited for the store, and `decode`, of a processor.
        notes: what went wrong with the first few failed images, for people.
        unfit: by column that travels, how many values were not of its type; they are null.
    """

    rows: pa.Table
    inputs: np.ndarray
    is_last: bool
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()
    unfit: dict[str, int] = field(default_factory=dict)


def read_images(items: pa.Table, spec: ReadSpec) -> Iterator[DecodedImages]:
    """Fetch and decode the images of some items.

    Args:
        items: rows of PAGE_SCHEMA.
        spec: how.

    Yields:
        Batches in the items' order; at least one, the last one marked.

    Raises:
        StorageError: the store failed in a way that is no single image's fault.
    """
    yield from decode_images(fetch_images(items, spec), spec, len(items) if spec.kind == "images" else None)


def decode_images(images: Iterable[FetchedImage], spec: ReadSpec, count: int | None = None) -> Iterator[DecodedImages]:
    """Decode fetched images in batches; at least one, the last one marked.

    Args:
        images: fetched.
        spec: how.
        count: most images that there can be, where it is known; memory is set aside for them.
    """
    batch = _Batch(spec, spec.batch_images if count is None else min(count, spec.batch_images))
    upcoming = iter(images)
    while True:
        began = time.perf_counter()
        image = next(upcoming, None)
        batch.fetch_seconds += time.perf_counter() - began
        if image is None:
            break
        if batch.is_full:
            yield batch.take(is_last=False)
        batch.add(image)
    yield batch.take(is_last=True)


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
        raise StorageError(f"{error}; then {GO_ON}") from error
    if isinstance(error, StoreAwayError):
        raise error
    if isinstance(error, ObjectTooLargeError):
        return ImageError(ImageErrorCode.TOO_LARGE, str(error))
    if isinstance(error, (ObjectNotFoundError, SourceError)):
        return ImageError(ImageErrorCode.NOT_FOUND, str(error))
    return ImageError(ImageErrorCode.FETCH_FAILED, str(error))


@dataclass
class _Batch:
    """Collects decoded items, each decoded into its place; what failed ones leave free at the end is never touched."""

    spec: ReadSpec
    capacity: int
    rows: list[dict[str, object]] = field(default_factory=list)
    values: list[Mapping[str, Any]] = field(default_factory=list)
    inputs: np.ndarray | None = None
    decoded: int = 0
    notes: list[str] = field(default_factory=list)
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def is_full(self) -> bool:
        return len(self.rows) >= self.spec.batch_images

    def add(self, image: FetchedImage) -> None:
        self.values.append(image.values)
        row: dict[str, object] = {"uri": image.uri, "etag": image.etag, "label": image.label}
        began = time.thread_time()
        try:
            if isinstance(image.data, ImageError):
                raise image.data
            decoded, size = self.spec.decode(image.data)
        except ImageError as error:
            self.rows.append({**row, "error": str(error.code)})
            if error.code is not ImageErrorCode.NO_IMAGES:
                self.notes.append(f"{image.uri}: {error}")
        else:
            self.rows.append({**row, **size})
            if image.note:
                self.notes.append(f"{image.uri}: {image.note}")
            if self.inputs is None:
                self.inputs = self.spec.room(self.capacity)
            self.inputs[self.decoded] = decoded
            self.decoded += 1
        self.decode_seconds += time.thread_time() - began

    def take(self, *, is_last: bool) -> DecodedImages:
        """What was collected; the next images start another batch."""
        rows, unfit = self._with_values(pa.Table.from_pylist(self.rows, ROWS_SCHEMA))
        images = DecodedImages(
            rows,
            self.spec.room(0) if self.inputs is None else self.inputs[: self.decoded],
            is_last,
            {"fetch": self.fetch_seconds, "decode": self.decode_seconds},
            tuple(self.notes[:NOTES]),
            unfit,
        )
        self.rows, self.values, self.notes = [], [], []
        self.inputs, self.decoded = None, 0
        self.fetch_seconds = self.decode_seconds = 0.0
        return images

    def _with_values(self, rows: pa.Table) -> tuple[pa.Table, dict[str, int]]:
        """Rows with the columns that travel, and how many values of each are not of its type."""
        unfit: dict[str, int] = {}
        for column in self.spec.columns:
            given = [values.get(column.name) for values in self.values]
            fits, others = fitting(given, column)
            rows = rows.append_column(column.field, fits)
            if others:
                unfit[column.name] = len(others)
                uri, value = self.rows[others[0]]["uri"], given[others[0]]
                self.notes.append(f"{uri}: {column.name} is {value!r:.60}, expected {column.type}: null instead")
        return rows, unfit
