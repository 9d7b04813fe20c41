"""`tlray extract` while processes of a cluster are killed and stopped: what the user reads, and that the table is exact."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import use_server
from tests.extraction.on_ray.faulty import HEALTH, IMAGES, WAIT_SECONDS, Command, Lake, Way, started, stray_lines
from tests.ray_cluster import RayCluster
from tlray.demo.s3_server import S3Server

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

IMPATIENT = {"RAY_gcs_rpc_server_reconnect_timeout_s": "15"}
"""Of a driver, that it does not wait for its head for a whole minute."""


@pytest.fixture(scope="module")
def lake(s3_server: S3Server) -> Iterator[Lake]:
    with pytest.MonkeyPatch.context() as patch:
        use_server(s3_server, patch)
        yield Lake.make(s3_server.make_bucket(f"faults-{os.getpid()}"))


def kill(pids: list[int], number: signal.Signals = signal.SIGKILL) -> None:
    assert pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextlib.contextmanager
def two_nodes(
    lake: Lake, table: str, env: dict[str, str], folder: Path
) -> Iterator[tuple[RayCluster, subprocess.Popen[bytes], Command]]:
    """A cluster of a head without cores and two nodes, of which the first is given, while both work for a driver."""
    with (
        RayCluster(folder, cpus=0, env=HEALTH | env) as cluster,
        cluster.node(1) as first,
        cluster.node(1) as second,
        started(lake.arguments(table), env | cluster.env, folder / "driver") as command,
    ):
        command.until(
            lambda: lake.parts(table) >= 2 and sum(len(cluster.pids("UnitActor", node)) for node in (first, second)) == 2
        )
        yield cluster, first, command


def test_a_raylet_that_is_killed_takes_its_units_only(lake: Lake, way: Way, env: dict[str, str], tmp_path: Path) -> None:
    with two_nodes(lake, "raylet", env, tmp_path) as (cluster, first, command):
        kill(cluster.pids("raylet/raylet", first))
        way.photo_seconds = 0
        assert command.result()["ok"] == IMAGES
    assert not stray_lines(command.said)
    lake.assert_exact("raylet")


def test_a_driver_whose_own_raylet_is_killed_says_so(lake: Lake, way: Way, env: dict[str, str], tmp_path: Path) -> None:
    with (
        RayCluster(tmp_path, cpus=2, env=HEALTH | env) as cluster,
        started(lake.arguments("own-raylet"), env | cluster.env | IMPATIENT, tmp_path / "driver") as command,
    ):
        command.until(lambda: lake.parts("own-raylet") >= 2)
        kill(cluster.pids("raylet/raylet"))
        way.photo_seconds = 0
        assert command.end() == 1
    assert "the cluster's head (" in command.said and "does not answer: Ray waits for it" in command.said
    assert "run the same command again: it goes on from the last commit" in command.said
    assert not stray_lines(command.said)
    with (
        RayCluster(tmp_path, cpus=2, env=env) as cluster,
        started(lake.arguments("own-raylet"), env | cluster.env, tmp_path / "again") as command,
    ):
        command.result()
    lake.assert_exact("own-raylet")


def test_a_driver_that_is_killed_leaves_no_worker_and_goes_on(
    lake: Lake, way: Way, env: dict[str, str], tmp_path: Path
) -> None:
    with RayCluster(tmp_path, cpus=2, env=env) as cluster:
        with started(lake.arguments("driver"), env | cluster.env, tmp_path / "driver") as command:
            command.until(lambda: lake.parts("driver") >= 2)
            kill([command.process.pid])
        way.photo_seconds = 0
        with started(lake.arguments("driver"), env | cluster.env, tmp_path / "again") as command:
            assert 0 < command.result()["ok"] <= IMAGES
        deadline = time.monotonic() + WAIT_SECONDS
        while cluster.pids("UnitActor"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    lake.assert_exact("driver")


def test_a_worker_and_a_driver_that_stand_still_for_a_while_go_on(
    lake: Lake, way: Way, env: dict[str, str], tmp_path: Path
) -> None:
    """The worker for as long as a machine that swaps, and the driver for longer than its lease."""
    with (
        RayCluster(tmp_path, cpus=2, env=env) as cluster,
        started(lake.arguments("stopped"), env | cluster.env, tmp_path / "driver") as command,
    ):
        command.until(lambda: lake.parts("stopped") >= 1)
        kill(cluster.pids("UnitActor"), signal.SIGSTOP)
        command.until(lambda: "nothing from the workers for" in command.said)
        kill([command.process.pid], signal.SIGSTOP)
        time.sleep(5)
        kill([command.process.pid], signal.SIGCONT)
        kill(cluster.pids("UnitActor"), signal.SIGCONT)
        way.photo_seconds = 0
        assert command.result()["ok"] == IMAGES
    assert not stray_lines(command.said)
    lake.assert_exact("stopped")


def test_a_node_that_wakes_after_it_was_given_up_changes_nothing(
    lake: Lake, way: Way, env: dict[str, str], tmp_path: Path
) -> None:
    with two_nodes(lake, "woken", env, tmp_path) as (cluster, first, command):
        asleep = [*cluster.pids("UnitActor", first), *cluster.pids("raylet/raylet", first)]
        kill(asleep, signal.SIGSTOP)
        before = lake.parts("woken")
        time.sleep(20)  # it counts as dead after three checks of three seconds
        kill(asleep, signal.SIGCONT)
        assert lake.parts("woken") > before  # the other one has gone on
        way.photo_seconds = 0
        assert command.result()["ok"] == IMAGES
    assert not stray_lines(command.said)
    lake.assert_exact("woken")
