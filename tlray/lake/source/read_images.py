"""From items of a source to pixels or texts: fetch, decode, resize; each beside a row that describes it, or says what failed.

Shape legend: B decoded images or texts of a batch, H height, W width, C channels.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.columns.values import fitting
from tlray.errors import ImageError, ImageErrorCode
from tlray.lake.source.containers.fetched_image import FetchedImage
from tlray.lake.source.fetch import fetch_images
from tlray.lake.source.read_spec import ReadSpec
from tlray.lake.table.schema import ERROR_FIELD, FIXED_FIELDS

NOTES = 3
"""Failures of a batch that the log tells of."""

ROWS_SCHEMA = pa.schema([*FIXED_FIELDS, ERROR_FIELD])


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
