"""Nodes that come and go while a run goes on: by themselves, with other code, or by an autoscaler, from none at all."""

import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tlray as package
from tests.conftest import use_server
from tests.extraction.on_ray.faulty import HEALTH, IMAGES, Command, Lake, Way, started, stray_lines
from tests.fault_proxy import Fault, Request
from tests.photos import result_of, tlray
from tests.ray_cluster import RayCluster, kill_all_of
from tlray.demo.s3_server import S3Server
from tlray.errors import ConfigError, SourceError
from tlray.extraction.on_ray.cluster import CORE_IMAGES, GPU_IMAGES, Cluster, share_out
from tlray.extraction.on_ray.needs import Needs, require
from tlray.extraction.on_ray.nodes import Node, Nodes, changes
from tlray.extraction.plan.plan import Plan, Unit
from tlray.extraction.worker.unit_worker import THREADS_AHEAD
from tlray.lake.source.source import PAGE_SCHEMA
from tlray.ray_cluster.code import code_here

WORK_SECONDS = 30
"""Within which a node that is ready is at work."""

UNITS_IN_FLIGHT = 1 + THREADS_AHEAD + 2
"""Of a worker with one core."""


@pytest.fixture(scope="module")
def lake(s3_server: S3Server) -> Iterator[Lake]:
    with pytest.MonkeyPatch.context() as patch:
        use_server(s3_server, patch)
        yield Lake.make(s3_server.make_bucket(f"elastic-{os.getpid()}"))


class CountingWay(Way):
    """Counts how often each photo passed."""

    def __init__(self) -> None:
        super().__init__(photo_seconds=0.05)
        self.fetched: dict[str, int] = {}

    def __call__(self, request: Request) -> Fault | None:
        if "/photos/" in request.key and request.method == "GET":
            self.fetched[request.key] = self.fetched.get(request.key, 0) + 1
        return super().__call__(request)


@pytest.fixture
def way() -> CountingWay:
    return CountingWay()


def seconds_to_work(command: Command, cluster: RayCluster, node: subprocess.Popen[bytes]) -> float:
    """From now on until a worker of a node is at work on a unit, as its title then says."""
    began = time.monotonic()
    command.until(lambda: cluster.pids(".submit", node))
    return time.monotonic() - began


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.slow
def test_a_node_that_joins_gets_work_and_one_that_leaves_loses_its_units_in_flight(
    lake: Lake, way: CountingWay, env: dict[str, str], tmp_path: Path
) -> None:
    with (
        RayCluster(tmp_path, cpus=0, env=HEALTH | env) as cluster,
        cluster.node(1) as first,
        started(lake.arguments("joined"), env | cluster.env, tmp_path / "driver") as command,
    ):
        command.until(lambda: cluster.pids(".submit", first))
        way.photo_seconds = 0.5  # so that work is left, whatever comes
        with cluster.node(1) as second:
            seconds = seconds_to_work(command, cluster, second)
            print(f"at work {seconds:.1f} s after it was ready")
            assert seconds < WORK_SECONDS
            kill_all_of(first)
            way.photo_seconds = 0
            assert command.result()["ok"] == IMAGES
    assert re.search(r"a node has joined: [\d.]+ with 1 core; the cluster has 2 cores now$", command.said, re.MULTILINE)
    assert re.search(r"a node has left: [\d.]+ with 1 core; the cluster has 1 core now$", command.said, re.MULTILINE)
    assert not stray_lines(command.said)
    again = sum(count - 1 for count in way.fetched.values())
    unit_images = IMAGES // 8  # of a plan for one core
    print(f"{again} photos were fetched again")
    assert again <= UNITS_IN_FLIGHT * unit_images
    lake.assert_exact("joined")


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.parametrize("lacks", [None, pytest.param("extraction/on_ray/tasks.py", marks=pytest.mark.sweep)])
def test_a_node_that_joins_with_other_code_is_refused(
    lacks: str | None, lake: Lake, way: CountingWay, env: dict[str, str], tmp_path: Path
) -> None:
    """One whose code would work, and one whose code knows nothing of what it is asked."""
    other, table = other_code(tmp_path / "site", lacks), f"other-code-{bool(lacks)}"
    with (
        RayCluster(tmp_path, cpus=0, env=HEALTH | env) as cluster,
        cluster.node(1) as first,
        started(lake.arguments(table), env | cluster.env, tmp_path / "driver") as command,
    ):
        command.until(lambda: cluster.pids(".submit", first))
        way.photo_seconds = 0.25  # so that work is left for it
        with cluster.node(1, env={"PYTHONPATH": str(other)}):
            assert command.end() == 2
    assert "ConfigError: " in command.complaint and " joined " in command.complaint
    assert "runs tlray 0.0.9 (sources " in command.complaint and f"tlray {package.__version__} (" in command.complaint
    assert "the same command again" in command.complaint and not stray_lines(command.said)


def other_code(site: Path, lacks: str | None) -> Path:
    """A folder with a tlray of another version, which may lack a file."""
    shutil.copytree(Path(package.__file__).parent, site / "tlray", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "tlray" / "version.py").write_text('"""Another."""\n\n__version__ = "0.0.9"\n')
    if lacks:
        (site / "tlray" / lacks).unlink()
    return site


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.parametrize("gpus", [pytest.param(0, marks=pytest.mark.sweep), 1])
def test_an_autoscaler_starts_nodes_from_none_as_the_plan_needs_them(
    gpus: int, lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With GPUs, Ray counts what nodes declare, and encoders compute on the CPU where torch sees none."""
    resources = {"CPU": 1, "object_store_memory": 2**28} | ({"GPU": 1} if gpus else {})
    group = {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": 4}
    for name in ("CORE_IMAGES", "GPU_IMAGES", "LEAST_CORE_IMAGES", "LEAST_GPU_IMAGES"):
        monkeypatch.setattr(f"tlray.extraction.on_ray.cluster.{name}", IMAGES // 2)  # the plan keeps two nodes busy
    with RayCluster(tmp_path, cpus=0, groups={"worker": group}) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        outcome = tlray(*lake.arguments(f"scaled-{gpus}"), *(["--gpus"] if gpus else []))
    print(outcome.stderr)
    result, log = result_of(outcome), outcome.stderr
    assert "it takes what joins" in log or gpus
    assert 1 <= log.count("a node has joined: ") <= 2, log  # never more than the plan is worth
    assert ("transfer" in result["stages"]) == bool(gpus)
    lake.assert_exact(f"scaled-{gpus}")


def plan_of(todo: int) -> Plan:
    unit = Unit(0, PAGE_SCHEMA.empty_table())
    return Plan("images", [unit] * math.ceil(todo / 512), [], todo, 0)


def cluster_of(*nodes: tuple[float, float], is_own: bool = False, **more: Any) -> Cluster:
    there = Nodes.__new__(Nodes)
    there.alive = [Node(str(number), "host", cpus, gpus) for number, (cpus, gpus) in enumerate(nodes)]
    return Cluster(there, is_own, **more)


def test_as_many_workers_wait_for_room_as_a_plan_keeps_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("tlray.extraction.on_ray.cluster.say", said.append)
    large, small = plan_of(2**20), plan_of(1000)
    assert cluster_of((2, 0)).workers_for(large).actors == 2**20 // (2 * CORE_IMAGES)
    assert said == ["127 workers more would have enough to do: they start as nodes join, which an autoscaler sees"]
    assert cluster_of((2, 0)).workers_for(small).actors == 2  # for a node that joins anyway
    assert cluster_of((2, 0), (2, 0)).workers_for(small).actors == 2  # it has two units
    assert cluster_of(*[(2, 0)] * 8).workers_for(small).actors == 2
    assert cluster_of((8, 1)).workers_for(small).actors == 1  # no GPU is started for seconds of work
    assert cluster_of((2, 0), most=3).workers_for(large).actors == 3
    assert cluster_of((2, 0), (2, 0), most=1).workers_for(large).actors == 1
    assert cluster_of((2, 0), is_own=True).workers_for(large).actors == 1  # nobody joins it
    assert cluster_of((8, 1)).workers_for(large).actors == 2**20 // GPU_IMAGES
    assert cluster_of((8, 0), on_gpus=True).workers_for(small).actors == 1  # which is yet to come
    assert cluster_of((8, 1), on_gpus=False).workers_for(small).lanes == 8
    on_gpus = cluster_of((64, 8)).workers_for(large)
    assert (on_gpus.actors, on_gpus.lanes, on_gpus.slots) == (32, None, 64)


def test_gpus_may_be_yet_to_come_or_be_left_alone() -> None:
    assert share_out([8], 2).gpus == 1 and share_out([8], 0).gpus == 0
    coming = share_out([], 0, on_gpus=True)
    assert (coming.actors, coming.gpus, coming.slots) == (0, 1, 1)
    assert share_out([8], 2, on_gpus=False).actors == 1
    assert share_out([0], 0).actors == 0


def test_a_worker_tells_whether_it_has_what_a_run_needs(tmp_path: Path) -> None:
    folder, file = tmp_path / "photos", tmp_path / "photos" / "a.jpg"
    folder.mkdir()
    for seen in ((str(folder),), (str(file),), (str(tmp_path / "other"),)):  # an empty folder is one that is not mounted
        with pytest.raises(SourceError, match=r"a node that has joined .* does not see"):
            require(Needs(code_here(), seen))
    file.touch()
    require(Needs(code_here(), (str(folder), str(file))))
    require(None)
    with pytest.raises(ConfigError, match=r"a node that has joined .* runs tlray .*; the driver runs tlray 0\.0\.9 "):
        require(Needs(code_here()._replace(version="tlray 0.0.9")))


def test_who_joined_and_who_left_is_said() -> None:
    before = [Node("h", "10.0.0.1", 0, 0), Node("a", "10.0.0.1", 8, 0), Node("b", "10.0.0.2", 8, 1)]
    now = [*before[:2], Node("c", "10.0.0.3", 1, 0)]
    assert list(changes(before, now)) == [
        "a node has joined: 10.0.0.3 with 1 core; the cluster has 9 cores now",
        "a node has left: 10.0.0.2 with 8 cores and 1 GPU; the cluster has 9 cores now",
    ]
    assert not list(changes(now, now))


def test_capacity_is_that_of_the_nodes_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    seen = [[Node("a", "host", 2, 0)], [Node("a", "host", 2, 0), Node("b", "host", 4, 0)]]
    monkeypatch.setattr("tlray.extraction.on_ray.nodes._alive", lambda: seen[now[0] >= 110])
    monkeypatch.setattr("tlray.extraction.on_ray.nodes.time.monotonic", lambda: now[0])
    nodes = Nodes()
    assert nodes.mean() == (2, 0)
    now[0] = 110
    nodes.look()
    now[0] = 130
    assert nodes.mean() == ((10 * 2 + 20 * 6) / 30, 0)
    assert Cluster(nodes, False, most=1).mean_capacity() == (2, 0)
