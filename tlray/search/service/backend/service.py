"""The service over an index: what it answers, and how it moves to a new version while it answers.

Each request takes the searcher that is there when it comes and keeps it to its end, so an answer is all of one version.
Searches run in as many threads as there are cores, each FAISS call on one of them: requests, not parts of one, are parallel.
"""

import asyncio
import contextlib
import gc
import os
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread
import numpy as np

from tlray.config import ServeConfig
from tlray.errors import QueryError, RecipeMismatchError, TlrayError
from tlray.lake.storage.uri import to_uri
from tlray.progress import say
from tlray.search.neighbours.faiss_index import set_threads
from tlray.search.query.hits import Hits
from tlray.search.query.searcher import Searcher
from tlray.search.rows.selection import Filter
from tlray.search.service.backend.map import map_of
from tlray.search.service.backend.schema import Hit, IndexInfo, Point, Query, SearchRequest, SearchResponse
from tlray.search.service.backend.thumbnails import Thumbnails
from tlray.search.service.web.guard import Metrics
from tlray.search.versions.card import newest_version

LABELS_LISTED = 500
Result = TypeVar("Result")


@dataclass(frozen=True)
class Loaded:
    """A version at work, and its map, which is made on demand, once."""

    searcher: Searcher
    points: list[Point] = field(default_factory=list)
    drawing: threading.Lock = field(default_factory=threading.Lock)


class Service:
    """What the routes call.

    Args:
        config: of the command.

    Raises:
        TlrayError: the index cannot be opened, or the network computes other numbers.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.index_uri = to_uri(config.index)
        self.metrics = Metrics()
        self.thumbnails = Thumbnails(max_pixels=config.max_image_pixels)
        self._threads: anyio.CapacityLimiter | None = None
        self._loaded = self._load(Searcher.open(self.index_uri))
        self._encoder = None
        if config.images:
            self._encoder = self.searcher.encoder(max_image_pixels=config.max_image_pixels)
        self.is_stopping = False

    @property
    def searcher(self) -> Searcher:
        """The version that answers now."""
        return self._loaded.searcher

    def _load(self, searcher: Searcher) -> Loaded:
        card = searcher.card
        self.metrics.version.set(card.version)
        self.metrics.table_version.set(card.table_version)
        self.metrics.rows.set(card.rows)
        return Loaded(searcher)

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """Run work beside the event loop, at most one on each core."""
        if self._threads is None:
            self._threads = anyio.CapacityLimiter(os.cpu_count() or 1)
        return await anyio.to_thread.run_sync(partial(_on_one_core, work), limiter=self._threads, abandon_on_cancel=True)

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Follow the index's versions as long as the service runs."""
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            self.is_stopping = True
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.config.reload_seconds)
            try:
                await self.reload()
            except (TlrayError, OSError) as error:
                self.metrics.reloads.labels("failed").inc()
                say(f"the index stays at version {self.searcher.card.version}: {type(error).__name__}: {error}")

    async def reload(self) -> bool:
        """Move to the newest version, if there is a newer one.

        Returns:
            Whether it moved.

        Raises:
            TlrayError: the version cannot be loaded; the one at work stays.
        """
        newest = await asyncio.to_thread(newest_version, self.index_uri)
        if newest is None or newest <= self.searcher.card.version:
            return False
        searcher = await asyncio.to_thread(Searcher.open, self.index_uri, newest)
        self.searcher.check_recipe(searcher.card.recipe_id)
        if searcher.card.column != self.searcher.card.column:
            raise RecipeMismatchError(f"version {newest} is of column {searcher.card.column}; start the service again for it")
        self._loaded = self._load(searcher)
        self.metrics.reloads.labels("loaded").inc()
        say(f"version {newest} of the index answers from now on")
        await asyncio.to_thread(gc.collect)  # the version before may be gigabytes
        return True

    def info(self) -> IndexInfo:
        """What the index is."""
        searcher = self.searcher
        labels = dict(list(searcher.rows.labels.items())[:LABELS_LISTED])
        limits = {"max_k": self.config.max_k, "max_batch": self.config.max_batch}
        return IndexInfo(**searcher.about, labels=labels, images=self._encoder is not None, **limits)

    def search(self, request: SearchRequest) -> SearchResponse:
        """Answer queries.

        Raises:
            QueryError: over the limits, or a query names what is not there.
            RecipeMismatchError: vectors of another recipe.
        """
        if len(request.queries) > self.config.max_batch or request.k > self.config.max_k:
            most = f"{self.config.max_batch} queries and k {self.config.max_k}"
            raise QueryError(f"{len(request.queries)} queries with k {request.k}; expected at most {most}")
        searcher = self.searcher
        if request.recipe_id is not None:
            searcher.check_recipe(request.recipe_id)
        vectors, positions = zip(*(_vector_of(searcher, query) for query in request.queries), strict=True)
        where = Filter(tuple(request.labels), tuple(request.prefixes))
        return _response(searcher, searcher.search(np.stack(vectors), request.k, where, leave_out_B=np.array(positions)))

    def search_image(self, data: bytes, k: int, where: Filter) -> SearchResponse:
        """Answer an image.

        Raises:
            ImageError: it cannot be used.
            QueryError: over the limits, or the service was started without its network.
        """
        if self._encoder is None:
            raise QueryError("this service was started without its network (--no-images); search by id, URI, label or vector")
        if not 1 <= k <= self.config.max_k:
            raise QueryError(f"k is {k}; expected 1 to {self.config.max_k}")
        searcher = self.searcher
        return _response(searcher, searcher.search(self._encoder.embed([data]), k, where))

    def random(self, count: int, where: Filter) -> list[Hit]:
        """Some rows, drawn anew at each call."""
        searcher = self.searcher
        rows = np.flatnonzero(searcher.rows.mask(where.labels, where.prefixes)) if where else len(searcher.rows)
        available = rows if isinstance(rows, int) else len(rows)
        drawn = (
            np.random.default_rng().choice(rows, min(count, available), replace=False) if available else np.empty(0, np.int64)
        )
        hits = Hits(searcher.rows, drawn[None, :], np.zeros((1, len(drawn)), np.float32))
        return [Hit(**hit) for hit in hits.to_lists()[0]]

    def thumbnail(self, row_id: int) -> bytes:
        """The JPEG of a live row.

        Raises:
            QueryError: there is no such row.
            ImageError: its image cannot be had.
        """
        rows = self.searcher.rows
        position = int(rows.positions(np.array([row_id]))[0])
        if position < 0:
            raise QueryError(f"the index has no row {row_id}")
        return self.thumbnails.get(rows.uri(position), rows.table["etag"][position].as_py())

    def map(self) -> list[Point]:
        """Rows laid out in two dimensions; made once for each version, which goes on should the request not wait for it."""
        loaded = self._loaded
        with loaded.drawing:
            if not loaded.points:
                loaded.points.extend(map_of(loaded.searcher))
        return loaded.points


def _on_one_core(work: Callable[[], Result]) -> Result:
    set_threads(1)  # OpenMP counts for each calling thread by itself
    return work()


def _vector_of(searcher: Searcher, query: Query) -> tuple[np.ndarray, int]:
    """A query's vector, and the position of the row that it is, or -1."""
    if query.vector is not None:
        if len(query.vector) != searcher.card.dimensions:
            raise QueryError(f"a vector has {len(query.vector)} floats; expected {searcher.card.dimensions}")
        return np.array(query.vector, np.float32), -1
    if query.label is not None:
        return searcher.centroid(query.label), -1
    if query.uri is not None:
        position = searcher.rows.position_of_uri(query.uri)
    else:
        position = int(searcher.rows.positions(np.array([query.id]))[0])
        if position < 0:
            raise QueryError(f"the index has no row {query.id}")
    return searcher.vectors(np.array([position]))[0], position


def _response(searcher: Searcher, hits: Hits) -> SearchResponse:
    answers = [[Hit(**hit) for hit in found] for found in hits.to_lists()]
    return SearchResponse(version=searcher.card.version, metric=searcher.card.metric, answers=answers)
