"""Words as queries of the service: the text tower of the index's network, loaded once, when the first words come.

Shape legend: B texts, D dimensions.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tlray.errors import QueryError, ServiceUnavailableError, TlrayError
from tlray.progress import say
from tlray.search.query.opened_index import OpenedIndex, check_texts
from tlray.search.service.backend.workers import Place, Workers

if TYPE_CHECKING:
    from tlray.models.encoder.text import TextEncoder

TEXTS_AT_ONCE = 8
"""Embedded in one piece of work; between pieces a request can be given up."""
RETRY_SECONDS = 30.0
"""After the text tower could not be loaded, requests are refused for so long before it is tried again."""

_UNAVAILABLE = "the text tower could not be loaded, so words cannot be searched by; the service's log says why"


class Words:
    """The text tower, for all requests.

    Args:
        index: whose network it belongs to; a later version of the index has the same.
        loaders: threads that it is loaded in: not those of searches, which go on meanwhile.
        is_wanted: whether words may be searched by at all.
    """

    def __init__(self, index: OpenedIndex, loaders: Workers, *, is_wanted: bool) -> None:
        self._index, self._loaders, self._is_wanted = index, loaders, is_wanted
        self._loading: asyncio.Task[TextEncoder] | None = None
        self._failed_at = float("-inf")

    @property
    def are_searchable(self) -> bool:
        """Whether words can be searched by, as far as that can be told before a network is loaded."""
        return self._is_wanted and self._index.takes_texts

    async def embed(self, texts: Sequence[str], place: Place) -> tuple[np.ndarray, int]:
        """Embed the texts of a request.

        Args:
            texts: any number of them.
            place: the request's.

        Returns:
            vectors_BD, and how many texts were longer than the network takes, and lost their ends.

        Raises:
            QueryError: a text is empty, or words cannot be searched by.
            ServiceUnavailableError: the text tower could not be loaded.
        """
        check_texts(texts)
        if not self.are_searchable:
            why = (
                "texts are not compared with the index's vectors"
                if self._is_wanted
                else "this service was started with --no-text"
            )
            raise QueryError(f"words cannot be searched by: {why}; search by image, id, URI, label or vector")
        encoder = await self._encoder()
        pieces = [texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE)]
        found = [await place.run(partial(_embed, encoder, piece)) for piece in pieces]
        return np.concatenate([vectors_BD for vectors_BD, _ in found]), sum(cut for _, cut in found)

    async def _encoder(self) -> "TextEncoder":
        now = asyncio.get_running_loop().time()
        if self._loading is None and now - self._failed_at >= RETRY_SECONDS:
            self._loading = asyncio.create_task(self._loaders.run_own(self._index.text_encoder))
        if self._loading is None:
            raise ServiceUnavailableError(_UNAVAILABLE)
        try:
            return await asyncio.shield(self._loading)  # who leaves does not end it for the others
        except TlrayError as error:
            if self._loading is not None:
                self._loading, self._failed_at = None, now
                say(f"words cannot be searched by: {type(error).__name__}: {error}")
            raise ServiceUnavailableError(_UNAVAILABLE) from error


def _embed(encoder: "TextEncoder", texts: Sequence[str]) -> tuple[np.ndarray, int]:
    """On this thread's core alone, as all of the service's work."""
    from tlray.models.process.device import on_one_core  # imports torch, which is loaded with the text tower

    on_one_core()
    return encoder.embed(texts), encoder.count_cut(texts)
