"""`tlray extract` on a cluster of three hosts with their own addresses, of which one dies and one is cut off.

The driver runs on the head, and so does nothing else: no task has its memory. The S3 server listens on this machine's loopback,
as does all else that the test starts outside the hosts; they reach it through a forwarder at the bridge's address.
`--cut-seconds 60` cuts for a whole minute, with as much work as lasts for it.
"""

import contextlib
import json
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

from tests.extraction.test_in_process import assert_same
from tests.forwarder import Forwarder, end
from tests.hosts import Hosts, RayHosts, why_not
from tests.photos import RECIPE, frame_of, photo, result_of, s3_options, tlray
from tlray.demo.s3_server import S3Server
from tlray.lake.storage.open import open_store

pytestmark = [pytest.mark.hosts, pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

HEALTH = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",  # a node that is alive answers within them on a busy machine too
    "RAY_health_check_failure_threshold": "3",
}

LATENCY_SECONDS, LONG_LATENCY_SECONDS = 0.3, 5.0


class SlowForwarder(Forwarder):
    """Passes connections on to the store, whose answers take so long that the work lasts while things happen to the hosts.

    Attributes:
        soon: so many blocks of answers more are passed on after the short latency, the others after the long one.
    """

    soon: float

    def connect(self, client: socket.socket, server: socket.socket) -> None:
        for one, other, wait in ((client, server, lambda: None), (server, client, self._wait)):
            threading.Thread(target=_pass, args=(one, other, wait), daemon=True).start()

    def _wait(self) -> None:
        self.soon -= 1
        time.sleep(LATENCY_SECONDS if self.soon > 0 else LONG_LATENCY_SECONDS)


def _pass(one: socket.socket, other: socket.socket, wait: Callable[[], None]) -> None:
    with contextlib.suppress(OSError):
        while block := one.recv(2**20):
            wait()
            other.sendall(block)
    end(one, other)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with Hosts(3) as hosts:
        yield hosts


@pytest.fixture
def images(cut_seconds: float) -> int:
    """So many that some are still to do when the link is mended; workers make some 20 a second of them."""
    return int(max(600, 40 * cut_seconds))


@pytest.fixture
def lake(s3_env: S3Server, s3_bucket: str, images: int) -> str:
    """A bucket of photos, and the table of them as one process makes it without interruption."""
    store, photos = open_store(s3_bucket), [photo(number, (32, 24)) for number in range(50)]
    for number in range(images):
        store.write(f"{s3_bucket}/photos/{number:05d}.jpg", photos[number % 50])
    result_of(tlray(*arguments(s3_bucket, "reference"), "--local"))
    return s3_bucket


def arguments(lake: str, table: str) -> list[str]:
    return ["extract", "--source.uri", f"{lake}/photos/", "--table", f"{lake}/{table}", *RECIPE]


def rows_of(table: str) -> pl.DataFrame:
    return frame_of(table, s3_options())


def wait_for_parts(process: subprocess.Popen[bytes], table: str, count: int) -> None:
    """Until a run has written so many parts, or has ended."""
    while process.poll() is None and parts(table) < count:
        time.sleep(0.2)


def parts(table: str) -> int:
    return sum(map(len, open_store(table).list(f"{table}/status=ok/")))


@pytest.mark.timeout(1800)
def test_a_dead_node_and_a_cut_link_change_nothing(
    hosts: Hosts, lake: str, images: int, cut_seconds: float, s3_env: S3Server, tmp_path: Path
) -> None:
    reference, table, log = rows_of(f"{lake}/reference"), f"{lake}/table", tmp_path / "driver.log"
    server, _, port = s3_env.endpoint.removeprefix("http://").rpartition(":")
    with (
        SlowForwarder(hosts.listen(), (server, int(port))) as way,
        RayHosts(hosts, cpus=2, env=HEALTH | {"AWS_ENDPOINT_URL": way.endpoint}) as cluster,
    ):
        way.soon = 2 / 3 * images
        driver = hosts.start(0, [sys.executable, "-m", "tlray", *arguments(lake, "table")], env=cluster.env, log=log)
        began, events = time.monotonic(), dict[str, float]()

        def note(event: str) -> None:
            assert driver.poll() is None, f"ended before it was {event}: {log.read_text()[-3000:]}"
            events[event] = round(time.monotonic() - began, 1)

        wait_for_parts(driver, table, 2)
        cluster.kill_node(1)
        note("killed")
        assert not hosts.pids(1)
        cluster.start_node(1)  # as Kubernetes or a power supply that is back would
        note("started again")
        before = parts(table)
        wait_for_parts(driver, table, before + 1)
        hosts.cut(2)
        note("cut")
        time.sleep(cut_seconds)
        note("mended")
        hosts.mend(2)
        way.soon = math.inf
        driver.wait(1200)
        print(f"{events}, ended {time.monotonic() - began:.1f} s after its start")
    print("\n".join(line[:200] for line in log.read_text().splitlines() if " images" in line))
    assert driver.returncode == 0, log.read_text()[-5000:]
    (line,) = [line for line in log.read_text().splitlines() if line.startswith('{"table"')]
    result = json.loads(line)
    assert (result["ok"], result["failed"]) == (images, 0)
    assert_same(rows_of(table), reference)
    assert tlray("verify", table).returncode == 0
