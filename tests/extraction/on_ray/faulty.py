"""A lake behind a proxy that lets work last as long as a test needs, and commands on clusters of the test's own."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from tests.extraction.test_in_process import assert_same
from tests.fault_proxy import Fault, FaultProxy, Request
from tests.photos import RECIPE, SHORT_LEASE, complaints, frame_of, photo, result_of, s3_options, tlray
from tests.ray_cluster import RayCluster
from tlray.lake.storage.open import open_store

IMAGES = 400
HEALTH = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}
"""So a node that is gone is known to be in seconds."""

WAIT_SECONDS = 300.0
"""For what comes in seconds on a machine that has time for it."""


@dataclass
class Way:
    """What the proxy does to requests: photos pass one after the other, as slowly as it is told."""

    photo_seconds: float = 0.05
    fault: Callable[[Request], Fault | None] = field(default=lambda request: None)

    def __call__(self, request: Request) -> Fault | None:
        if "/photos/" in request.key and request.method == "GET":
            time.sleep(self.photo_seconds)
        return self.fault(request)


@dataclass(frozen=True)
class Lake:
    """A bucket of photos, and the table of them as one process makes it."""

    bucket: str
    reference: pl.DataFrame

    @classmethod
    def make(cls, bucket: str, instead: Mapping[int, bytes] | None = None) -> "Lake":
        """A lake of IMAGES small photos, or by their numbers of others instead."""
        store, photos = open_store(bucket), [photo(number, (32, 24)) for number in range(50)]
        for number in range(IMAGES):
            store.write(f"{bucket}/photos/{number:05d}.jpg", (instead or {}).get(number, photos[number % 50]))
        lake = cls(bucket, pl.DataFrame())
        result_of(tlray(*lake.arguments("reference"), "--local"))
        return cls(bucket, lake.rows("reference"))

    def arguments(self, table: str) -> list[str]:
        return ["extract", "--source.uri", f"{self.bucket}/photos/", "--table", f"{self.bucket}/{table}", *RECIPE, *SHORT_LEASE]

    def rows(self, table: str) -> pl.DataFrame:
        return frame_of(f"{self.bucket}/{table}", s3_options())

    def parts(self, table: str) -> int:
        return sum(map(len, open_store(self.bucket).list(f"{self.bucket}/{table}/status=ok/")))

    def has_table(self, table: str) -> bool:
        return next(iter(open_store(self.bucket).list(f"{self.bucket}/{table}/")), None) is not None

    def assert_exact(self, table: str) -> None:
        """Every row as in the reference, by Polars, none twice; and every file as the log says."""
        frame = self.rows(table)
        assert frame["uri"].n_unique() == len(frame) == IMAGES
        assert_same(frame, self.reference)
        assert tlray("verify", f"{self.bucket}/{table}").returncode == 0


class Command:
    """A command in a process of its own, as a user runs it: what it says is in a file while it runs."""

    def __init__(self, arguments: list[str], env: Mapping[str, str], folder: Path, within: Sequence[str] = ()) -> None:
        self._log, self._out = folder / "stderr.log", folder / "stdout.log"
        with self._log.open("wb") as log, self._out.open("wb") as out:
            # Not where tlray's sources are: Ray would have workers import from there what the driver has.
            self.process = subprocess.Popen(
                [*within, sys.executable, "-m", "tlray", *arguments],
                stdout=out,
                stderr=log,
                cwd=folder,
                env={**os.environ, **env},
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    @property
    def complaint(self) -> str:
        """The one line that it ended with."""
        (line,) = complaints(self.said)
        return line

    def result(self, seconds: float = WAIT_SECONDS) -> dict:
        """Of a command that must succeed."""
        assert self.end(seconds) == 0, self.said[-5000:]
        return json.loads(self._out.read_text().splitlines()[-1])

    def end(self, seconds: float = WAIT_SECONDS) -> int:
        """Its exit code."""
        self.process.wait(seconds)
        print(self.said)
        return self.process.returncode

    def until(self, happened: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
        """Wait for something that happens while it runs."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.process.poll() is None, f"ended before it happened: {self.said[-5000:]}"
            assert time.monotonic() < deadline, f"did not happen in {seconds} s: {self.said[-5000:]}"
            time.sleep(0.1)


def stray_lines(said: str) -> list[str]:
    """Lines of a log that are none of tlray's, as each of these has its time: what Ray let the user read."""
    return [line for line in said.splitlines() if not re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \S", line)]


@contextmanager
def started(arguments: list[str], env: Mapping[str, str], folder: Path, within: Sequence[str] = ()) -> Iterator[Command]:
    """A command that is ended at the end, whatever happened; `within` is a command that runs it in surroundings of its own."""
    folder.mkdir(exist_ok=True)
    command = Command(arguments, env, folder, within)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            command.process.kill()
            command.process.wait()


@contextmanager
def slow_way(endpoint: str, way: Way) -> Iterator[dict[str, str]]:
    """A proxy in front of the lake's server; yields the environment that leads by it."""
    with FaultProxy(endpoint, way) as proxy:
        yield {"AWS_ENDPOINT_URL": proxy.endpoint}


def objects_of(table: str) -> int:
    """How many objects there are of a table: lease, recipe, log and parts."""
    return sum(map(len, open_store(table).list(f"{table}/")))


def wait_for_objects(process: subprocess.Popen[str], table: str, count: int) -> bool:
    """Until a run has written so many objects of its table, and has not ended."""
    while process.poll() is None:
        if objects_of(table) >= count:
            return True
        time.sleep(0.05)
    return False


@contextmanager
def workers_killed(cluster: RayCluster, table: str, least: int) -> Iterator[list[int]]:
    """Kill all workers in the middle of the work, each time that they have written some objects, until `least` are killed."""
    killed, has_ended = list[int](), threading.Event()

    def kill() -> None:
        while len(killed) < least and not has_ended.wait(0.05):
            if objects_of(table) >= 4 * (len(killed) + 1):
                for pid in cluster.pids("UnitActor"):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        has_ended.set()
        killer.join()
