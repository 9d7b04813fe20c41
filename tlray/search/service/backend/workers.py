"""Threads that work for requests: a fixed number of them, whatever requests come and go.

Nobody can stop a thread in the middle of FAISS or of a decoder. So a request that timed out, or whose client has left, keeps
its thread and its place until the piece of work under way has ended; what it had still to do is not begun any more. The number
of threads bounds the cores that are busy and the images that are being decoded; that of places, who waits for them.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from tlray.errors import ServiceBusyError

Result = TypeVar("Result")


class Workers:
    """A pool of threads with a bounded number of requests at work or waiting.

    Used from one event loop.

    Args:
        threads: that work at once; started when they are first needed.
        places: for requests that work or wait for a thread; more are refused.
        name: of the threads.
        start: called by each thread before its first work.
    """

    def __init__(self, threads: int, places: int, *, name: str, start: Callable[[], None] | None = None) -> None:
        self.places = places
        self._taken = 0
        # Who waits does so in the event loop, not in the pool's queue: one that gives up leaves nothing behind.
        self._free_threads = asyncio.Semaphore(threads)
        self._pool = ThreadPoolExecutor(threads, name, start)

    @property
    def taken(self) -> int:
        """Places of requests that work or wait, and of work that goes on for requests that are gone."""
        return self._taken

    @property
    def is_full(self) -> bool:
        """Whether the next request would be refused."""
        return self._taken >= self.places

    @asynccontextmanager
    async def place(self, *, even_if_full: bool = False) -> AsyncIterator["Place"]:
        """Hold a place for a request that works in several pieces, between which it can be given up.

        Args:
            even_if_full: for the service's own work, which no request can keep out.

        Raises:
            ServiceBusyError: all places are taken.
        """
        if self.is_full and not even_if_full:
            raise ServiceBusyError("too many requests at once; try again in a moment")
        self._taken += 1
        place = Place(self._pool, self._free_threads, self._give_back)
        try:
            yield place
        finally:
            place.leave()

    async def run(self, work: Callable[[], Result]) -> Result:
        """Hold a place for one piece of work.

        Raises:
            ServiceBusyError: all places are taken.
        """
        async with self.place() as place:
            return await place.run(work)

    async def run_own(self, work: Callable[[], Result]) -> Result:
        """Do a piece of the service's own work, which no request can keep out."""
        async with self.place(even_if_full=True) as place:
            return await place.run(work)

    def _give_back(self) -> None:
        self._taken -= 1


class Place:
    """A request's place among others, from when it comes until its last piece of work has ended.

    Args:
        pool: whose threads work.
        free_threads: counts those that do not.
        give_back: called once, at the end.
    """

    def __init__(self, pool: ThreadPoolExecutor, free_threads: asyncio.Semaphore, give_back: Callable[[], None]) -> None:
        self._pool, self._free_threads, self._give_back = pool, free_threads, give_back
        self._pieces = 0
        self._left = False

    async def run(self, work: Callable[[], Result]) -> Result:
        """Do a piece of work in a thread; cancelled before one is free, it is never begun."""
        await self._free_threads.acquire()
        loop = asyncio.get_running_loop()
        self._pieces += 1
        try:
            future = self._pool.submit(work)
        except RuntimeError:  # the pool was shut down
            self._end_piece()
            raise
        future.add_done_callback(partial(self._tell, loop))
        return await asyncio.wrap_future(future)

    def leave(self) -> None:
        """Give the place back: now, or when the work under way has ended."""
        self._left = True
        self._free_if_done()

    def _tell(self, loop: asyncio.AbstractEventLoop, _: Future[Any]) -> None:
        try:
            loop.call_soon_threadsafe(self._end_piece)
        except RuntimeError:  # the loop is closed, so nobody waits any more
            self._end_piece()

    def _end_piece(self) -> None:
        self._pieces -= 1
        self._free_threads.release()
        self._free_if_done()

    def _free_if_done(self) -> None:
        if self._left and not self._pieces:
            self._give_back()
