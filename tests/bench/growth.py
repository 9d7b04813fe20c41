"""What a commit of a first backfill costs while its table grows: images and parts are made up, the log is real.

Units come at a pace, by a clock that counts the images' time beside the real time of the commits; joins take no time. A row for
each size: seconds a commit over the last tenth, the share of the run's time that commits and checkpoints take, the log's bytes
as a share of the parts', live parts beyond one for each 20,000 images at any commit, opening, and the driver's memory.
`joining`: how fast one worker joins real parts, and two.
"""

import argparse
import itertools
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from tests.bench.harness import finish, print_table, ratio
from tests.factories import make_recipe_file
from tlray.extraction.commit.committer import Committer
from tlray.extraction.plan.plan import Group
from tlray.extraction.worker.pieces import Piece, WrittenParts
from tlray.lake.table.log import delta_log
from tlray.lake.table.parts import Change, Part, vector_column, write_part
from tlray.lake.table.rewrite import join_parts
from tlray.lake.table.schema import FIXED_FIELDS
from tlray.lake.table.table import Table

UNIT_IMAGES, PLAN_UNITS, FAILED_OF_UNIT = 512, 2000, 5
ROW_BYTES = 1000
"""Of 512 numbers, `half`, with the names."""
LIVE_IMAGES = 20_000


class Clock:
    """Real seconds and those of the images."""

    def __init__(self) -> None:
        self.images_seconds = 0.0

    def __call__(self) -> float:
        return self.images_seconds + time.monotonic()


class Parts:
    """Made-up files, whose names are as long as real ones."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def part(self, status: str, rows: int) -> Part:
        name = f"20260101T000000-01234567-{next(self._numbers):075d}"
        return Part(path=f"status={status}/{name}.parquet", status=status, rows=rows, size_bytes=rows * ROW_BYTES)

    def submit(self, function: Callable[..., Any], uri: str, parts: list[Part], **options: Any) -> "Future[Part]":
        future: Future[Part] = Future()
        future.set_result(self.part(parts[0].status, sum(part.rows for part in parts)))
        return future


def backfill(images: int, images_per_second: float, folder: Path) -> Iterator[dict[str, Any]]:
    """A run of so many images; a row at each power of ten from a million on."""
    clock, made = Clock(), Parts()
    table = Table.create(f"file://{folder}/t", make_recipe_file())
    live, beyond, done = 0, 0, 0
    seconds: list[float] = []
    really = table.commit

    def commit(change: Change, **options: Any) -> None:
        nonlocal live, beyond
        began = time.monotonic()
        really(change, **options)
        seconds.append(time.monotonic() - began)
        live += len(change.add) - len(change.remove)
        beyond = max(beyond, live - done // LIVE_IMAGES)

    table.commit = commit  # type: ignore[method-assign]
    delta_log.time = SimpleNamespace(monotonic=clock, sleep=time.sleep, time_ns=time.time_ns)  # type: ignore[assignment]
    committer = Committer(table, "run", submit=made.submit, clock=clock)
    marks = [10**power for power in range(6, 12) if 10**power < images] + [images]
    while done < images:
        units = min(PLAN_UNITS, -(-(images - done) // UNIT_IMAGES))
        committer.start([Group((unit,)) for unit in range(units)])
        for unit in range(units):
            clock.images_seconds += UNIT_IMAGES / images_per_second
            done += UNIT_IMAGES
            parts = (made.part("ok", UNIT_IMAGES - FAILED_OF_UNIT), made.part("failed", FAILED_OF_UNIT))
            committer.add(Piece(unit, 0, True, WrittenParts(parts, {}), {}))
            committer.flush()
            if done >= marks[0]:
                if len(marks) == 1:
                    committer.finish()
                marks.pop(0)
                yield described(table, seconds, done, done / images_per_second, live, beyond)
    assert sum(part.rows for part in table.parts()) == done


def described(table: Table, seconds: list[float], done: int, run_seconds: float, live: int, beyond: int) -> dict[str, Any]:
    began = time.monotonic()
    Table.open(table.uri).parts()
    opened = time.monotonic() - began
    files = list(Path(table.uri.removeprefix("file://"), "_delta_log").iterdir())
    log_bytes = sum(file.stat().st_size for file in files)
    late = seconds[-max(1, len(seconds) // 10) :]
    return {
        "images": done,
        "commits": len(seconds),
        "commit ms": 1000 * median(late),
        "slowest s": max(late),
        "% of time": 100 * sum(seconds) / run_seconds,
        "log MB": log_bytes / 1e6,
        "% of bytes": 100 * log_bytes / (done * ROW_BYTES),
        "live": live,
        "beyond": beyond,
        "open s": opened,
        "RSS GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def joining(parts: int = 480, turns: int = 5) -> dict[str, Any]:
    """Megabytes a second of one worker and of two, on parts of 512 numbers a row; each worker has a core of its own.

    Each worker joins once before it is timed, as its first time takes longer. Turns are of one worker and then of two, so that
    their ratio is of the same minute; medians.
    """
    with tempfile.TemporaryDirectory() as folder:
        uri = Table.create(f"file://{folder}/t", make_recipe_file()).uri
        written = [write_part(uri, _rows(number), status="ok", stem="s", recipe_id="r") for number in range(parts)]
        groups = [written[start : start + 40] for start in range(0, parts, 40)]
        megabytes = sum(part.size_bytes for part in written) / 1e6
        with _workers(1) as one, _workers(2) as two:
            pools = {1: one, 2: two}
            for workers, pool in pools.items():
                list(pool.map(_wait, range(workers)))  # all have started
                _seconds(pool, uri, groups[:workers], f"first{workers}")
            rates = [
                {workers: megabytes / _seconds(pool, uri, groups, f"j{turn}-{workers}") for workers, pool in pools.items()}
                for turn in range(turns)
            ]
    return {
        "mb_per_second": median(each[1] for each in rates),
        "mb_per_second_of_two": median(each[2] for each in rates),
        "two_to_one": median(each[2] / each[1] for each in rates),
        "turns": [ratio(each[2], each[1]) for each in rates],
    }


def _workers(count: int) -> ProcessPoolExecutor:
    context = get_context("spawn")
    cores = context.SimpleQueue()
    for core in sorted(os.sched_getaffinity(0))[:count]:
        cores.put(core)
    return ProcessPoolExecutor(count, mp_context=context, initializer=_keep_to, initargs=(cores,))


def _keep_to(cores: "SimpleQueue[int]") -> None:
    """Keep a worker to a core, as if it had a host of its own: else one has some of its threads on the other's."""
    os.sched_setaffinity(0, {cores.get()})


def _wait(_: int) -> None:
    time.sleep(1)


def _seconds(pool: Executor, uri: str, groups: list[list[Part]], stem: str) -> float:
    began = time.perf_counter()
    for future in [pool.submit(join_parts, uri, group, stem=stem, recipe_id="r") for group in groups]:
        future.result()
    return time.perf_counter() - began


def _rows(number: int) -> pa.Table:
    rng, sides = np.random.default_rng(number), pa.array(np.full(UNIT_IMAGES, 500, np.int32))
    uris = pa.array([f"s3://photos/2026/{number:06d}/{image:09d}.jpg" for image in range(UNIT_IMAGES)])
    etags = pa.array([rng.bytes(16).hex() for _ in range(UNIT_IMAGES)])
    vectors = vector_column(rng.standard_normal((UNIT_IMAGES, 512), np.float32), "half")
    nulls = pa.nulls(UNIT_IMAGES, pa.string())
    names = [*(field.name for field in FIXED_FIELDS), "embedding", "error"]
    return pa.table([uris, etags, nulls, sides, sides, vectors, nulls], names=names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=float, default=1e7)
    parser.add_argument("--images-per-second", type=float, default=10_000)
    parser.add_argument("--only", choices=("growth", "joining"))
    options = parser.parse_args()
    results: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    if options.only in (None, "growth"):
        with tempfile.TemporaryDirectory() as folder:
            for row in backfill(int(options.images), options.images_per_second, Path(folder)):
                rows.append(row)
                print_table(rows[-1:])
        results["growth"] = rows
    if options.only in (None, "joining"):
        results["joining"] = joining()
    finish(results, rows or [results["joining"]])


if __name__ == "__main__":
    main()
