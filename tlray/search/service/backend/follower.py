"""The version of an index that answers now, and the move to a newer one while requests go on.

Who asks takes the searcher that is there and keeps it to the end, so that an answer is all of one version.
"""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from tlray.errors import RecipeMismatchError, TlrayError
from tlray.progress import say
from tlray.search.query.searcher import Searcher
from tlray.search.service.backend.metrics import Metrics
from tlray.search.versions.card import newest_version

Result = TypeVar("Result")


class Run(Protocol):
    """Does a piece of work beside the event loop."""

    def __call__(self, work: Callable[[], Result]) -> Awaitable[Result]:
        """The result of the call, once it is there."""


class IndexFollower:
    """Loads an index's newest version, and each later one when it appears.

    Args:
        index_uri: of the index.
        metrics: where versions are told.

    Raises:
        IndexMissingError: there is no index.
        IndexCorruptError: a file is not what its card says.
    """

    def __init__(self, index_uri: str, metrics: Metrics) -> None:
        self.index_uri = index_uri
        self._metrics = metrics
        self._take(Searcher.open(index_uri))

    @property
    def searcher(self) -> Searcher:
        """The version of the index that answers now."""
        return self._searcher

    def _take(self, searcher: Searcher) -> None:
        self._searcher = searcher
        card = searcher.card
        self._metrics.version.set(card.version)
        self._metrics.table_version.set(card.table_version)
        self._metrics.rows.set(card.rows)

    async def follow(self, every_seconds: float, run: Run) -> None:
        """Look for a newer version again and again; what goes wrong is said, and the version at work stays.

        Args:
            every_seconds: how often.
            run: does the loading.
        """
        while True:
            await asyncio.sleep(every_seconds)
            try:
                await self.reload(run)
            except (TlrayError, OSError) as error:
                self._metrics.reloads.labels("failed").inc()
                say(f"the index stays at version {self.searcher.card.version}: {type(error).__name__}: {error}")

    async def reload(self, run: Run) -> bool:
        """Move to the newest version, if there is a newer one.

        Args:
            run: does the loading.

        Returns:
            Whether it moved.

        Raises:
            TlrayError: the version cannot be loaded; the one at work stays.
        """
        newest = await run(self._newer)
        if newest is None:
            return False
        self._take(newest)
        self._metrics.reloads.labels("loaded").inc()
        say(f"version {newest.card.version} of the index answers from now on")
        await run(gc.collect)  # the version before may be gigabytes
        return True

    def _newer(self) -> Searcher | None:
        version = newest_version(self.index_uri)
        if version is None or version <= self.searcher.card.version:
            return None
        searcher = Searcher.open(self.index_uri, version)
        self.searcher.check_recipe(searcher.card.recipe_id)
        if searcher.card.column != self.searcher.card.column:
            raise RecipeMismatchError(f"version {version} is of column {searcher.card.column}; start the service again for it")
        return searcher
