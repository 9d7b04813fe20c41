"""`tlray extract` on nodes that run full: memory, object store, the disk that it spills to, and /dev/shm."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import use_server
from tests.extraction.on_ray.faulty import HEALTH, IMAGES, Lake, Way, started, stray_lines
from tests.extraction.on_ray.surroundings import ToldMemory, fill, tmpfs, why_no_mounts, with_mounts
from tests.ray_cluster import RayCluster
from tlray.demo.s3_server import S3Server

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

STORE_BYTES = 80 * 2**20
"""Of an object store, about the least that Ray takes."""

_HOLD = """
import sys, time
import numpy, ray
ray.init(log_to_driver=False)
held = [ray.put(numpy.zeros(2**20, numpy.uint8)) for _ in range(int(sys.argv[1]))]
print("held", flush=True)
time.sleep(3600)
"""


@pytest.fixture(autouse=True)
def mounts() -> None:
    if reason := why_no_mounts():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def lake(s3_server: S3Server) -> Iterator[Lake]:
    with pytest.MonkeyPatch.context() as patch:
        use_server(s3_server, patch)
        yield Lake.make(s3_server.make_bucket(f"full-{os.getpid()}"))


@contextmanager
def another_job(cluster: RayCluster, megabytes: int) -> Iterator[None]:
    """One that holds so much of the object store, in objects of a megabyte."""
    command = [sys.executable, "-c", _HOLD, str(megabytes)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **cluster.env})
    try:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        yield
    finally:
        process.kill()
        process.wait()


def test_workers_for_which_memory_runs_short_are_done_again(lake: Lake, way: Way, env: dict[str, str], tmp_path: Path) -> None:
    """Ray's memory monitor ends them for a while; then the kernel's OOM killer takes one, by the signal that it sends."""
    memory = ToldMemory(tmp_path / "memory")
    with (
        RayCluster(tmp_path, cpus=2, env=env, within=with_mounts(memory.mount)) as cluster,
        started(lake.arguments("memory"), env | cluster.env, tmp_path / "driver") as command,
    ):
        command.until(lambda: lake.parts("memory") >= 1)
        memory.use(0.99)
        command.until(lambda: "was ended by Ray, as the machine's memory is nearly full" in command.said)
        memory.use(0.2)
        before = lake.parts("memory")
        command.until(lambda: lake.parts("memory") > before and cluster.pids("UnitActor"))
        (worker, *_) = cluster.pids("UnitActor")
        os.kill(worker, signal.SIGKILL)
        command.until(lambda: f"died (process {worker}): its work is done again" in command.said)
        way.photo_seconds = 0
        assert command.result()["ok"] == IMAGES
    assert not stray_lines(command.said)
    lake.assert_exact("memory")


def test_a_full_disk_below_a_full_object_store_is_named_and_else_it_spills(
    lake: Lake, env: dict[str, str], tmp_path: Path
) -> None:
    """Pixels go through it where encoders have GPUs, or what Ray takes for some."""
    spill = tmp_path / "spill"
    with (
        RayCluster(
            tmp_path,
            cpus=2,
            gpus=1,
            env=env,
            object_store_bytes=STORE_BYTES,
            within=with_mounts(tmpfs(spill, 200)),
            more=[f"--object-spilling-directory={spill}"],
        ) as cluster,
    ):
        inside, filler = Path(f"/proc/{cluster.pid}/root{spill}"), fill(cluster.pid, spill)
        with another_job(cluster, 76):
            with started(lake.arguments("spilled"), env | cluster.env, tmp_path / "full") as command:
                assert command.end() == 1
            assert "a node's object store is full, and cannot be written to its disk ([Errno 28] No space left" in command.said
            assert "a node's object store or the disk that it spills to is full" in command.complaint
            assert not stray_lines(command.said)
            filler.unlink()
            with started(lake.arguments("spilled"), env | cluster.env, tmp_path / "driver") as command:
                command.result()
            assert sum(path.stat().st_size for path in inside.rglob("*") if path.is_file()) > 2**20
    assert not stray_lines(command.said)
    lake.assert_exact("spilled")


@pytest.mark.sweep
def test_a_node_whose_shared_memory_is_full_is_done_without(lake: Lake, way: Way, env: dict[str, str], tmp_path: Path) -> None:
    """Of its own, as pixels go through it where encoders have GPUs; once another node is there, that one does all again."""
    way.photo_seconds = 1  # nothing is decoded before it is full, as what Ray has had of it once it has for good
    with (
        RayCluster(tmp_path, cpus=0, gpus=1, env=HEALTH | env, object_store_bytes=STORE_BYTES) as cluster,
        cluster.node(1, within=with_mounts(tmpfs("/dev/shm", 100))) as node,
        started(lake.arguments("shm"), env | cluster.env, tmp_path / "driver") as command,
    ):
        command.until(lambda: "400 to embed in" in command.said)
        fill(node.pid, "/dev/shm")
        way.photo_seconds = 0
        command.until(lambda: "/dev/shm was full there" in command.said and "a node has left: " in command.said)
        with cluster.node(1):
            assert command.result()["ok"] == IMAGES
    assert not stray_lines(command.said)
    lake.assert_exact("shm")
