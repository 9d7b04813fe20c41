"""Small pictures of images, as data URIs, within a budget of bytes; and their pixels, for what can be seen from these.

Shape legend: H height, W width, C channels.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tlray.errors import ImageError, TlrayError
from tlray.reports.parts.page import Shot
from tlray.search.service.backend.images.decoding import DecodingLimits
from tlray.search.service.backend.images.thumbnails import Thumbnails

SIDE_PIXELS = 144
"""Longest side: shown at 104 CSS pixels."""

QUALITY = 72
MAX_IMAGE_PIXELS = 64_000_000
BUDGET_BYTES = 3_500_000
"""The size of all pictures of a report, in base64: with its text it stays below 5 MB."""

_THREADS = 8


@dataclass(frozen=True)
class Wish:
    """A picture that a report is to show, if it can be had.

    Attributes:
        uri: of the image.
        etag: the version of its bytes, where it is known.
        caption: what stands below it.
        tone: `plain`, `good` or `bad`.
    """

    uri: str
    etag: str | None
    caption: str
    tone: str = "plain"


class Pictures:
    """Makes the pictures of one report."""

    def __init__(self) -> None:
        self._thumbnails = Thumbnails(DecodingLimits(MAX_IMAGE_PIXELS))
        self._left_bytes = BUDGET_BYTES
        self._made: dict[tuple[str, str | None], tuple[str, str]] = {}

    def shots(self, wishes: Sequence[Wish]) -> list[Shot]:
        """Pictures in the order of the wishes; one that cannot be had says why."""
        new = list(dict.fromkeys((one.uri, one.etag) for one in wishes if (one.uri, one.etag) not in self._made))
        with ThreadPoolExecutor(_THREADS, "pictures") as threads:
            for key, made in zip(new, threads.map(lambda key: self._make(*key), new), strict=True):
                self._made[key] = self._within_budget(made)
        found = []
        for one in wishes:
            source, missing = self._made[one.uri, one.etag]
            found.append(Shot(source, one.caption, title=one.uri, missing=missing, tone=one.tone))
        return found

    def pixels(self, keys: Sequence[tuple[str, str | None]]) -> Iterator[np.ndarray | None]:
        """The pixels of images made small, HWC, uint8; None where they cannot be had.

        Args:
            keys: URI and etag of each.
        """
        with ThreadPoolExecutor(_THREADS, "pictures") as threads:
            yield from threads.map(lambda key: self._pixels(*key), keys)

    def _pixels(self, uri: str, etag: str | None) -> np.ndarray | None:
        try:
            return np.asarray(Image.open(io.BytesIO(self._thumbnails.get(uri, etag))).convert("RGB"))
        except TlrayError:
            return None

    def _make(self, uri: str, etag: str | None) -> tuple[str, str]:
        try:
            image = Image.open(io.BytesIO(self._thumbnails.get(uri, etag))).convert("RGB")
        except ImageError as error:
            return "", str(error.code)
        except TlrayError as error:
            return "", type(error).__name__
        image.thumbnail((SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.BILINEAR)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=QUALITY)
        return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}", ""

    def _within_budget(self, made: tuple[str, str]) -> tuple[str, str]:
        if len(made[0]) > self._left_bytes:
            return "", "left out: the report would be too large"
        self._left_bytes -= len(made[0])
        return made


def name_of(uri: str) -> str:
    """The last two parts of a URI: a folder often says what an image is."""
    return "/".join(uri.rsplit("/", 2)[-2:])
