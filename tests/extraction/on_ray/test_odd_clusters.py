"""`tlray extract` on clusters that are not as they should be: no cores yet, other code, too little memory, another time."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tlray as package
from tests.conftest import use_server
from tests.extraction.on_ray.faulty import IMAGES, Lake, started, stray_lines
from tests.photos import error_of, tlray
from tests.ray_cluster import RayCluster
from tlray.demo.s3_server import S3Server
from tlray.ray_cluster import code

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]


@pytest.fixture(scope="module")
def lake(s3_server: S3Server) -> Iterator[Lake]:
    with pytest.MonkeyPatch.context() as patch:
        use_server(s3_server, patch)
        yield Lake.make(s3_server.make_bucket(f"odd-{os.getpid()}"))


def test_a_head_without_cores_waits_for_nodes_of_any_size(lake: Lake, tmp_path: Path) -> None:
    with RayCluster(tmp_path, cpus=0) as cluster, contextlib.ExitStack() as nodes:
        with started(lake.arguments("no-cores"), cluster.env, tmp_path / "driver") as command:
            command.until(lambda: "no CPU at all; no worker has started" in command.said)
            small, large = (nodes.enter_context(cluster.node(cpus)) for cpus in (1, 2))
            assert command.result()["ok"] == IMAGES
        assert not cluster.pids("UnitActor")
        with started(lake.arguments("two-sizes"), cluster.env, tmp_path / "again") as command:
            command.until(lambda: cluster.pids("UnitActor", small) and cluster.pids("UnitActor", large))
            assert command.result()["ok"] == IMAGES
        assert "3 nodes" in command.said and "with 3 cores; it takes up to 3 workers of 1 cores" in command.said
    lake.assert_exact("no-cores")
    lake.assert_exact("two-sizes")


def test_other_code_on_a_worker_is_refused_before_anything_is_written(lake: Lake, tmp_path: Path) -> None:
    other = tmp_path / "site" / "tlray"
    shutil.copytree(Path(package.__file__).parent, other, ignore=shutil.ignore_patterns("__pycache__"))
    (other / "version.py").write_text('"""Another."""\n\n__version__ = "0.0.9"\n')
    with (
        RayCluster(tmp_path, cpus=0) as cluster,
        cluster.node(1, env={"PYTHONPATH": str(other.parent)}),
        started(lake.arguments("other-code"), cluster.env, tmp_path / "driver") as command,
    ):
        assert command.end() == 2
    assert "1 of the cluster's 1 nodes that work run other code than this process: node " in command.complaint
    assert "runs tlray 0.0.9 (sources " in command.complaint and f"runs tlray {package.__version__} (" in command.complaint
    assert not lake.has_table("other-code") and not stray_lines(command.said)


def test_another_python_is_refused_before_anything_is_written(
    lake: Lake, ray_cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.address)
    monkeypatch.setattr("ray._private.utils.compute_version_info", lambda: ("2.60.0", "3.12.1"))
    said = error_of(tlray(*lake.arguments("other-python")))
    assert "ConfigError: cannot join or start a Ray cluster: Version mismatch" in said and "3.12.1" in said
    assert not lake.has_table("other-python")


def test_a_process_tells_which_code_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    here = code.code_here.__wrapped__()
    assert here.python == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert here.version == f"tlray {package.__version__}" and len(here.digest) == 12
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert code.question()()[0][1:] == ("no tlray", "")
