"""`tlray extract` where the kernel kills for memory: a worker on Ray, and the whole process of `--local`."""

import io
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import use_server
from tests.extraction.on_ray.faulty import IMAGES, WAIT_SECONDS, Lake, Way, started, stray_lines
from tests.extraction.on_ray.surroundings import LittleMemory
from tests.fault_proxy import Request
from tests.ray_cluster import RayCluster
from tlray.demo.s3_server import S3Server

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow, pytest.mark.sweep]

LARGE, SIDE = 150, 3000
"""The number of the photo that is large, and its height and width: decoded, a PNG takes four bytes a pixel."""

MEGABYTES = 16
"""More than a worker takes anew for small photos, and less than the large one needs."""


def large_photo() -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def groups() -> None:
    if reason := LittleMemory.why_not():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def lake(s3_server: S3Server) -> Iterator[Lake]:
    with pytest.MonkeyPatch.context() as patch:
        use_server(s3_server, patch)
        yield Lake.make(s3_server.make_bucket(f"kernel-{os.getpid()}"), {LARGE: large_photo()})


@pytest.fixture
def may_come(way: Way) -> threading.Event:
    """Set when the large photo may come."""
    event = threading.Event()

    def hold(request: Request) -> None:
        if request.key.endswith(f"photos/{LARGE:05d}.jpg"):
            event.wait(WAIT_SECONDS)

    way.fault = hold
    return event


def test_a_worker_that_the_kernel_kills_is_done_again(
    lake: Lake, may_come: threading.Event, env: dict[str, str], tmp_path: Path
) -> None:
    with (
        RayCluster(tmp_path, cpus=2, env=env) as cluster,
        LittleMemory(MEGABYTES) as memory,
        started(lake.arguments("worker"), env | cluster.env, tmp_path / "driver") as command,
    ):
        command.until(lambda: lake.parts("worker") >= 1)
        (worker,) = cluster.pids("UnitActor")
        memory.take(worker)
        may_come.set()
        command.until(lambda: f"died (process {worker}): its work is done again" in command.said)
        assert memory.killed == 1
        assert command.result()["ok"] == IMAGES
    assert not stray_lines(command.said)
    lake.assert_exact("worker")


def test_a_process_that_the_kernel_kills_goes_on(
    lake: Lake, may_come: threading.Event, env: dict[str, str], tmp_path: Path
) -> None:
    arguments = [*lake.arguments("local"), "--local"]
    with LittleMemory(MEGABYTES) as memory, started(arguments, env, tmp_path / "killed") as command:
        command.until(lambda: lake.parts("local") >= 1)
        memory.take(command.process.pid)
        may_come.set()
        assert command.end() == -signal.SIGKILL
        assert memory.killed == 1
    with started(arguments, env, tmp_path / "again") as command:
        command.result()
    assert not stray_lines(command.said)
    lake.assert_exact("local")
