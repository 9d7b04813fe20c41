"""Extraction in one process, without Ray: threads that each work on a unit share an encoder with a lane for every core."""

import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace

from tlray.extraction.plan.plan import Plan
from tlray.extraction.worker.pieces import Piece, WrittenParts
from tlray.extraction.worker.unit_worker import THREADS_AHEAD, UnitWorker


def run_locally(plan: Plan, worker: UnitWorker, lanes: int) -> Generator[Piece[WrittenParts], None, None]:
    """Work a plan off.

    Args:
        plan: with its units.
        worker: its encoder has as many lanes.
        lanes: cores to use.

    Yields:
        Written pieces as they are finished, in no particular order. Closed early, units under way are dropped.
    """
    stopped = threading.Event()
    worker = replace(worker, stopped=stopped.is_set)
    waiting = deque(plan.units)
    running: set[Future[list[Piece[WrittenParts]]]] = set()
    with ThreadPoolExecutor(lanes + THREADS_AHEAD, thread_name_prefix="unit") as threads:
        try:
            while waiting or running:
                while waiting and len(running) < lanes + THREADS_AHEAD:
                    running.add(threads.submit(worker.work, waiting.popleft()))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from future.result()
        finally:
            stopped.set()
