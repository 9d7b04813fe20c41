"""Threads and places: what goes on after nobody waits for it any more is counted until it has ended."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from tlray.errors import ServiceBusyError
from tlray.search.service.backend.images.decoding import ONE_AT_A_TIME_PIXELS, DecodingLimits
from tlray.search.service.backend.workers import Workers


class Work:
    """Work that lasts until it may end, and knows how much of it goes on at once."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.begun = self.at_once = self.most = 0
        self._lock = threading.Lock()

    def __call__(self) -> str:
        with self._lock:
            self.begun += 1
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        assert self.may_end.wait(300)
        with self._lock:
            self.at_once -= 1
        return "done"


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def cancelled(task: "asyncio.Task[object]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_work_of_requests_that_are_gone_keeps_its_thread_and_its_place() -> None:
    async def main() -> None:
        workers, work = Workers(2, 3, name="test"), Work()
        tasks = [asyncio.create_task(workers.run(work)) for _ in range(3)]
        await until(lambda: work.begun == 2)
        assert workers.is_full
        with pytest.raises(ServiceBusyError, match="too many requests"):
            await workers.run(work)
        for task in tasks:
            await cancelled(task)
        assert workers.taken == 2  # the third had not begun, and left nothing behind
        waiting = asyncio.create_task(workers.run(work))
        await asyncio.sleep(0.2)
        assert (work.begun, work.at_once, workers.taken) == (2, 2, 3)
        assert work.most == 2
        work.may_end.set()
        assert await waiting == "done"
        await until(lambda: workers.taken == 0)
        assert work.begun == 3

    asyncio.run(main())


def test_nothing_is_begun_for_a_request_that_is_gone() -> None:
    async def main() -> None:
        workers, first, second = Workers(1, 5, name="test"), Work(), Work()

        async def request() -> None:
            async with workers.place() as place:
                await place.run(first)
                await place.run(second)

        task = asyncio.create_task(request())
        await until(lambda: first.begun == 1)
        await cancelled(task)
        assert workers.taken == 1
        first.may_end.set()
        second.may_end.set()
        await until(lambda: workers.taken == 0)
        assert second.begun == 0
        assert await workers.run(second) == "done"

    asyncio.run(main())


def test_a_request_keeps_its_place_between_its_pieces_and_errors_give_it_back() -> None:
    async def main() -> None:
        workers = Workers(1, 1, name="test")
        async with workers.place() as place:
            assert await place.run(lambda: 1) == 1
            assert workers.taken == 1
            with pytest.raises(ServiceBusyError):
                await workers.run(lambda: 2)
            assert await workers.run_own(lambda: 3) == 3  # no request keeps the service's own work out
            assert await place.run(lambda: 4) == 4
        with pytest.raises(ZeroDivisionError):
            await workers.run(lambda: 1 // 0)
        assert workers.taken == 0

    asyncio.run(main())


def test_the_loop_may_end_before_the_work() -> None:
    workers, work = Workers(1, 2, name="test"), Work()

    async def leave() -> None:
        task = asyncio.create_task(workers.run(work))
        await until(lambda: work.begun == 1)
        await cancelled(task)

    asyncio.run(leave())
    assert workers.taken == 1
    work.may_end.set()
    deadline = time.monotonic() + 300
    while workers.taken and time.monotonic() < deadline:
        time.sleep(0.01)
    assert workers.taken == 0


def test_large_images_are_decoded_one_after_the_other_and_small_ones_at_once() -> None:
    from tlray.errors import ImageError, ImageErrorCode

    limits = DecodingLimits(4 * ONE_AT_A_TIME_PIXELS)

    def decode(pixels: int, work: Work) -> None:
        def with_at_most(most: int) -> str:
            if pixels > most:
                raise ImageError(ImageErrorCode.BOMB, f"{pixels} pixels")
            return work()

        limits.decode(with_at_most)

    for pixels, most in ((ONE_AT_A_TIME_PIXELS, 4), (2 * ONE_AT_A_TIME_PIXELS, 1)):
        work = Work()
        threads = [threading.Thread(target=decode, args=(pixels, work)) for _ in range(4)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 300
        while work.begun < most and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        work.may_end.set()
        for thread in threads:
            thread.join(300)
        assert (work.begun, work.most) == (4, most)
    with pytest.raises(ImageError, match="bomb"):
        decode(5 * ONE_AT_A_TIME_PIXELS, Work())
