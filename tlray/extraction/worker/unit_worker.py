"""Units of a plan, from their listing to written parts: several threads that share an encoder.

A thread works on one unit and takes turns with the others on the cores. In a turn it decodes a few images and embeds them, so
that their pixels are still in the core's caches, and no more threads compute than there are cores, however many wait for the
store.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from time import perf_counter
from typing import Protocol

from tlray.errors import GO_ON, StoppedError
from tlray.extraction.plan.plan import Plan, Unit
from tlray.extraction.worker.pieces import (
    EncodedRows,
    Piece,
    TimedEncoder,
    WrittenParts,
    encode_piece,
    join_pieces,
    write_piece,
)
from tlray.lake.source.containers.fetched_image import FetchedImage
from tlray.lake.source.fetch import fetch_images
from tlray.lake.source.read_images import decode_images
from tlray.lake.source.read_spec import ReadSpec
from tlray.machine.timers import is_past
from tlray.recipe import RecipeFile

LANES_PER_PROCESS = 8
"""Cores of one process without GPUs: its lanes share one interpreter, of which an image needs about a hundredth of the
time that it takes to compute, and one copy of the weights."""

THREADS_AHEAD = 1
"""Threads more than lanes, so that one fetches or writes while the others keep all cores busy; more of them win nothing."""


class Cores(Protocol):
    """Turns on the cores; `tlray.models.encoder.encoder.Encoder` gives them."""

    def turn(self) -> AbstractContextManager[None]:
        """Wait for a core, and have it for a while."""
        ...

    @property
    def turn_images(self) -> int | None:
        """Images of a turn; None for as many as there are."""
        ...

    @property
    def computed_by(self) -> str:
        """What computes, where there is a choice; else empty."""
        ...

    @property
    def trial(self) -> str:
        """Why it does, where a trial chose it; else empty."""
        ...


@dataclass(frozen=True)
class UnitWorker:
    """All that it takes to work on units.

    Attributes:
        encoder: with one lane a core, and the table's head.
        cores: of the encoder's lanes.
        spec: how to fetch and decode.
        table_uri: where parts go.
        recipe_file: of the table.
        run_id: of this run.
        closes: seconds since 1970, from when on no unit is begun; None for no such time.
        stopped: asked between images; once it says so, units are dropped.
    """

    encoder: TimedEncoder
    cores: Cores
    spec: ReadSpec
    table_uri: str
    recipe_file: RecipeFile
    run_id: str
    closes: float | None = None
    stopped: Callable[[], bool] = lambda: False

    def work_off(self, plan: Plan, lanes: int) -> Generator[Piece[WrittenParts], None, None]:
        """Work on the units of a plan, several at a time, until none is left.

        Args:
            plan: with its units.
            lanes: cores to use; the encoder has as many lanes.

        Yields:
            Written pieces as they are finished, in no particular order. Closed early, units under way are dropped; from
            `closes` on, those that are not begun are left out.
        """
        stopped = threading.Event()
        worker = replace(self, stopped=stopped.is_set)
        waiting = deque(plan.units)
        running: set[Future[list[Piece[WrittenParts]]]] = set()
        with ThreadPoolExecutor(lanes + THREADS_AHEAD, thread_name_prefix="unit") as threads:
            try:
                while waiting or running:
                    if is_past(self.closes):
                        waiting.clear()
                    while waiting and len(running) < lanes + THREADS_AHEAD:
                        running.add(threads.submit(worker.work, waiting.popleft()))
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield from future.result()
            finally:
                stopped.set()

    def work(self, unit: Unit) -> list[Piece[WrittenParts]]:
        """Fetch, decode, embed and write the images of a unit, in this thread.

        Raises:
            StoppedError: `stopped` said so.
            TlrayError: what ends the run.
        """
        written: list[Piece[WrittenParts]] = []
        waiting: list[Piece[EncodedRows]] = []
        for fetched, fetch_seconds in self._turns(unit):
            if waiting and sum(len(piece.content) for piece in waiting) + len(fetched) > self.spec.batch_images:
                written.append(self._write(waiting, len(written), is_last=False))
                waiting = []
            with self.cores.turn():
                (images,) = decode_images(fetched, self.spec, len(fetched))  # no more than a batch can hold, so it is one
                seconds = {**images.seconds, "fetch": fetch_seconds}
                of_images = (images, seconds, images.notes, images.unfit)
                piece = Piece(unit.index, len(written), False, *of_images, self.cores.computed_by, self.cores.trial)
                waiting.append(encode_piece(self.encoder, piece, self.recipe_file))
        written.append(self._write(waiting, len(written), is_last=True))
        return written

    def _turns(self, unit: Unit) -> Iterator[tuple[list[FetchedImage], float]]:
        """The images of each turn, and how long they were waited for; one turn without images if the unit has none."""
        upcoming = self._unless_stopped(fetch_images(unit.items, self.spec))
        at_once = min(self.cores.turn_images or self.spec.batch_images, self.spec.batch_images)
        is_first = True
        while True:
            began = perf_counter()
            images = list(islice(upcoming, at_once))
            if not images and not is_first:
                return
            yield images, perf_counter() - began
            is_first = False

    def _unless_stopped(self, images: Iterator[FetchedImage]) -> Iterator[FetchedImage]:
        for image in images:
            if self.stopped():
                raise StoppedError(f"the run was asked to stop; {GO_ON}")
            yield image

    def _write(self, waiting: list[Piece[EncodedRows]], index: int, *, is_last: bool) -> Piece[WrittenParts]:
        piece = join_pieces(waiting, index=index, is_last=is_last)
        return write_piece(piece, table_uri=self.table_uri, recipe_id=self.recipe_file.table_id, run_id=self.run_id)
