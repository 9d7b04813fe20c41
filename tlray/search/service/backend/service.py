"""The service over an index: what it answers, and the threads in which it does so.

Searches run in as many threads as there are cores, each on one core: requests, not parts of one, are parallel. What reads from
stores (thumbnails, new versions of the index) has threads of its own, so that a store that hangs holds up no search.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

import numpy as np

from tlray.config import ServeConfig
from tlray.errors import QueryError
from tlray.lake.storage.uri import to_uri
from tlray.machine.capacity import usable_cores
from tlray.progress import say
from tlray.search.neighbours.faiss_index import set_threads
from tlray.search.query.hits import Hits
from tlray.search.query.searcher import Searcher
from tlray.search.rows.row_texts import RowTexts
from tlray.search.rows.selection import Filter
from tlray.search.rows.shown_columns import shown_fields
from tlray.search.service.backend.answering import response_of, vector_of
from tlray.search.service.backend.follower import IndexFollower
from tlray.search.service.backend.images.decoding import DecodingLimits
from tlray.search.service.backend.images.thumbnails import Thumbnails
from tlray.search.service.backend.map.collection_map import CollectionMap
from tlray.search.service.backend.metrics import Metrics
from tlray.search.service.backend.schema import Hit, IndexInfo, Map, RowText, SearchRequest, SearchResponse
from tlray.search.service.backend.words import Words
from tlray.search.service.backend.workers import Workers

LABELS_LISTED = 2000
TEXT_CHARACTERS = 2000
"""How much of a row's text is given: more than a card of the page shows."""
BYTES_OF_A_FLOAT = 32
"""Most that a float takes in JSON, white space and all."""
BYTES_OF_A_SEARCH = 2**20
"""The most that a search by JSON has beside vectors: ids, URIs and filters."""
MOST_STORE_THREADS = 6
"""Threads that read from stores, on a machine with that many cores or more; as many as cores, at least 2, on smaller ones."""

Result = TypeVar("Result")


class Service:
    """What the routes of the web service call.

    Args:
        config: of the command.

    Raises:
        TlrayError: the index cannot be opened, or the network computes other numbers.
    """

    def __init__(self, config: ServeConfig) -> None:
        cores = usable_cores()
        self._limits = config
        self.metrics = Metrics()
        # FAISS counts its threads for each calling thread by itself.
        self.workers = Workers(cores, config.max_concurrency, name="search", start=lambda: set_threads(1))
        self._stores = Workers(min(MOST_STORE_THREADS, max(2, cores)), config.max_concurrency, name="stores")
        self._follower = IndexFollower(to_uri(config.index), self.metrics)
        self._decoding = DecodingLimits(config.max_image_pixels)
        self._thumbnails = Thumbnails(self._decoding)
        self._texts = RowTexts.of(self.searcher.recipe_file, self.searcher.card.table)
        self._encoder = self.searcher.encoder(lanes=cores) if config.images and self._texts is None else None
        self._words = Words(self.searcher, self._stores, is_wanted=config.text)
        self._map = CollectionMap(self.searcher, self.workers)
        self.is_stopping = False

    @property
    def index_uri(self) -> str:
        """Where the index that answers is stored."""
        return self._follower.index_uri

    @property
    def max_search_bytes(self) -> int:
        """Largest body of a search by JSON: a full batch of vectors fits, and a parser's memory is a few times that."""
        vectors_bytes = self._limits.max_batch * self.searcher.card.dimensions * BYTES_OF_A_FLOAT
        return min(self._limits.max_body_bytes, vectors_bytes + BYTES_OF_A_SEARCH)

    @property
    def searcher(self) -> Searcher:
        """The version of the index that answers now."""
        return self._follower.searcher

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """Run work beside the event loop, in one of as many threads as there are cores.

        Raises:
            ServiceBusyError: `max_concurrency` requests are at work or waiting.
        """
        return await self.workers.run(work)

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Follow the index's versions as long as the service runs."""
        task = asyncio.create_task(self._follower.follow(self._limits.reload_seconds, self._stores.run_own))
        task.add_done_callback(_say_why_it_ended)
        try:
            yield
        finally:
            self.is_stopping = True
            task.cancel()
            await asyncio.gather(task, self._map.close(), return_exceptions=True)

    async def reload(self) -> bool:
        """Move to the index's newest version, if there is a newer one.

        Returns:
            Whether it moved.

        Raises:
            TlrayError: the version cannot be loaded; the one at work stays.
        """
        return await self._follower.reload(self._stores.run_own)

    def info(self) -> IndexInfo:
        """What the index is, and what requests may ask for."""
        labels = self.searcher.rows.labels
        limits = {name: getattr(self._limits, name) for name in ("max_k", "max_batch", "max_body_bytes")}
        return IndexInfo(
            **self.searcher.about,
            labels=dict(list(labels.items())[:LABELS_LISTED]),
            label_count=len(labels),
            columns=self.searcher.columns,
            images=self._encoder is not None,
            words=self._words.are_searchable,
            texts=self._texts is not None,
            **limits,
        )

    async def search_json(self, data: bytes) -> SearchResponse:
        """Answer queries; those that have words are embedded between two pieces of work, where they can be given up.

        Args:
            data: a SearchRequest.

        Raises:
            ValidationError: it is none.
            QueryError: over the limits, or a query names what is not there.
            RecipeMismatchError: vectors of another recipe.
            ServiceBusyError: `max_concurrency` requests are at work or waiting.
            ServiceUnavailableError: the text tower could not be loaded.
        """
        async with self.workers.place() as place:
            # Parsed in a thread: a large body would hold up everybody else.
            begun = await place.run(lambda: self._begin(data))
            if isinstance(begun, SearchResponse):
                return begun
            texts_BD, cut = await self._words.embed(begun.texts, place)
            return await place.run(lambda: self.search(begun, texts_BD).model_copy(update={"cut_texts": cut}))

    def _begin(self, data: bytes) -> SearchRequest | SearchResponse:
        """Parse a request, and answer it where it has no words to embed first."""
        request = SearchRequest.model_validate_json(data)
        if len(request.queries) > self._limits.max_batch or request.k > self._limits.max_k:
            most = f"{self._limits.max_batch} queries and k {self._limits.max_k}"
            raise QueryError(f"{len(request.queries)} queries with k {request.k}; expected at most {most}")
        shown_fields(self.searcher.rows, request.columns)  # refused before words are embedded
        return request if request.texts else self.search(request)

    def search(self, request: SearchRequest, texts_BD: np.ndarray | None = None) -> SearchResponse:
        """Answer queries whose words are embedded already.

        Args:
            request: within the limits.
            texts_BD: the vectors of its texts, in their order.

        Raises:
            QueryError: a query names what is not there.
            RecipeMismatchError: vectors of another recipe.
        """
        searcher = self.searcher
        if request.recipe_id is not None:
            searcher.check_recipe(request.recipe_id)
        of_texts = iter(() if texts_BD is None else texts_BD)
        vectors, positions = zip(*(vector_of(searcher, query, of_texts) for query in request.queries), strict=True)
        where = Filter(tuple(request.labels), tuple(request.prefixes), request.where)
        hits = searcher.search(np.stack(vectors), request.k, where, leave_out_B=np.array(positions))
        return response_of(searcher, hits, positions, request.columns)

    async def search_image(self, data: bytes, k: int, where: Filter, columns: Sequence[str] = ()) -> SearchResponse:
        """Answer an image; given up between decoding, embedding and searching when nobody waits any more.

        Raises:
            ImageError: it cannot be used.
            QueryError: over the limits, a column that is not there, or the service was started without its network.
            ServiceBusyError: `max_concurrency` requests are at work or waiting.
        """
        encoder = self._encoder
        if encoder is None:
            raise QueryError("this service was started without its network (--no-images); search by id, URI, label or vector")
        if not 1 <= k <= self._limits.max_k:
            raise QueryError(f"k is {k}; expected 1 to {self._limits.max_k}")
        searcher = self.searcher
        shown_fields(searcher.rows, columns)
        async with self.workers.place() as place:
            pixels_HWC = await place.run(lambda: self._decoding.decode(lambda most: encoder.decode(data, max_pixels=most)))
            features_BD = await place.run(lambda: encoder.encode(pixels_HWC[None]))
            return await place.run(lambda: response_of(searcher, searcher.search(features_BD, k, where), [-1], columns))

    def random(self, count: int, where: Filter, seed: int | None = None, columns: Sequence[str] = ()) -> list[Hit]:
        """Rows drawn at random: anew at each call, or the same ones for the same seed and version of the index."""
        searcher = self.searcher
        shown = shown_fields(searcher.rows, columns)
        rows = np.flatnonzero(searcher.rows.mask(where.labels, where.prefixes, where.where)) if where else len(searcher.rows)
        available = rows if isinstance(rows, int) else len(rows)
        if not available:
            return []
        drawn = np.random.default_rng(seed).choice(rows, min(count, available), replace=False)
        hits = Hits(searcher.rows, drawn[None, :], np.zeros((1, len(drawn)), np.float32))
        return [Hit(**hit) for hit in hits.to_lists(shown)[0]]

    async def thumbnail(self, row_id: int) -> bytes:
        """The JPEG of a live row.

        Raises:
            QueryError: there is no such row.
            ImageError: its image cannot be had.
            ServiceBusyError: `max_concurrency` of them are at work or waiting.
        """
        rows = self.searcher.rows
        position = int(rows.positions(np.array([row_id]))[0])
        if position < 0:
            raise QueryError(f"the index has no row {row_id}")
        uri, etag = rows.uri(position), rows.table["etag"][position].as_py()
        kept = self._thumbnails.kept(uri, etag)
        return kept if kept is not None else await self._stores.run(lambda: self._thumbnails.get(uri, etag))

    async def text(self, row_id: int) -> RowText:
        """The text of a live row, or the beginning of a long one.

        Raises:
            QueryError: there is no such row, its text is gone, or rows are images.
            ServiceBusyError: `max_concurrency` of them are at work or waiting.
        """
        texts, rows = self._texts, self.searcher.rows
        position = int(rows.positions(np.array([row_id]))[0])
        if texts is None or position < 0:
            raise QueryError(f"the index has no text of a row {row_id}")
        text = await self._stores.run(lambda: texts.get(rows, position))
        return RowText(text=text[:TEXT_CHARACTERS], characters=len(text))

    async def map(self) -> Map:
        """Rows laid out in two dimensions, as well as there was time for by now.

        Raises:
            ServiceBusyError: it is not drawn yet, and too many requests are at work.
        """
        if self._map.searcher is not self.searcher:
            await self._map.close()
            self._map = CollectionMap(self.searcher, self.workers)
        return await self._map.get()


def _say_why_it_ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        error = task.exception()
        say(f"new versions of the index are not followed any more, restart the service: {type(error).__name__}: {error}")
