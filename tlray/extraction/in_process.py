"""Extraction in one process, without Ray: threads that each work on a unit share an encoder with a lane for every core."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace

from tlray.extraction.plan.plan import Plan
from tlray.extraction.worker.pieces import Piece, WrittenParts
from tlray.extraction.worker.scoring_encoder import with_head
from tlray.extraction.worker.unit_worker import THREADS_AHEAD, UnitWorker
from tlray.lake.source.read_images import ReadSpec
from tlray.lake.storage.local_copy import local_copy
from tlray.lake.table.table import Table
from tlray.models.backbones import Backbone
from tlray.models.encoder.golden import make_encoder


def engine_in_process(
    spec: ReadSpec, table: Table, backbone: Backbone, run_id: str
) -> Callable[[Plan], Generator[Piece[WrittenParts], None, None]]:
    """Load the encoder of a table, once for all plans of a run.

    Raises:
        GoldenMismatchError: this machine computes other numbers than the table holds.
    """
    lanes = os.cpu_count() or 1
    encoder = make_encoder(table.recipe_file, local_copy, where="this machine", backbone=backbone, lanes=lanes)
    scoring = with_head(encoder, table.recipe_file, table.uri)
    worker = UnitWorker(scoring, encoder, spec, table.uri, table.recipe_file, run_id)
    return lambda plan: run_in_process(plan, worker, lanes)


def run_in_process(plan: Plan, worker: UnitWorker, lanes: int) -> Generator[Piece[WrittenParts], None, None]:
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
