"""`tlray extract` on a Ray cluster, from a real S3 server to tables in it, while things are killed."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.extraction.on_ray.faulty import objects_of, stray_lines, wait_for_objects, workers_killed
from tests.extraction.test_in_process import assert_same
from tests.photos import RECIPE, SHORT_LEASE, frame_of, photo, result_of, s3_options, start_tlray, tlray
from tests.ray_cluster import RayCluster
from tlray.extraction.on_ray.cluster import share_out
from tlray.lake.storage.open import open_store
from tlray.ray_cluster.address import answers

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

IMAGES, BAD = 300, 2
MOMENTS = {"--local": ("begun", "at work"), "--no-local": ("at work",)}
"""Of a kill; before there are workers both do the same."""


@pytest.fixture(scope="module")
def lake(lake: str) -> str:
    """A bucket with photos, and a driver's environment for it and for the cluster."""
    store, photos = open_store(lake), [photo(number, (32, 24)) for number in range(50)]
    for number in range(IMAGES):
        store.write(f"{lake}/photos/{'cat' if number % 2 else 'dog'}/{number:05d}.jpg", photos[number % 50])
    for number in range(BAD):
        store.write(f"{lake}/photos/bad/{number}.jpg", b"not a picture")
    return lake


def arguments(lake: str, table: str) -> list[str]:
    return ["extract", "--source.uri", f"{lake}/photos/", "--source.labels", "folder", "--table", f"{lake}/{table}", *RECIPE]


def rows_of(lake: str, table: str) -> pl.DataFrame:
    return frame_of(f"{lake}/{table}", s3_options())


@pytest.fixture(scope="module")
def reference(lake: str) -> pl.DataFrame:
    """The table as one process makes it without interruption."""
    result_of(tlray(*arguments(lake, "reference"), "--local"))
    frame = rows_of(lake, "reference")
    assert len(frame) == IMAGES + BAD
    return frame


def test_ray_makes_the_same_table(lake: str, reference: pl.DataFrame) -> None:
    result = result_of(tlray(*arguments(lake, "on-ray")))
    assert (result["listed"], result["ok"], result["failures"]) == (IMAGES + BAD, IMAGES, {"not_an_image": BAD})
    assert_same(rows_of(lake, "on-ray"), reference)
    again = tlray(*arguments(lake, "on-ray"))
    assert result_of(again)["unchanged"] == IMAGES + BAD
    assert "nothing to do" in again.stderr


@pytest.mark.parametrize("mode", MOMENTS)
def test_a_driver_killed_at_any_moment_goes_on(lake: str, reference: pl.DataFrame, mode: str) -> None:
    """Runs are killed after random numbers of objects (lease, recipe, log, parts), each followed by the same command."""
    rng, table, seen = random.Random(11), f"killed{mode}", []
    for moment in MOMENTS[mode]:
        before = objects_of(f"{lake}/{table}")
        more = rng.randint(1, 3) if moment == "begun" else rng.randint(4, 10)
        process = start_tlray(*arguments(lake, table), *SHORT_LEASE, mode)
        if wait_for_objects(process, f"{lake}/{table}", before + more):
            time.sleep(rng.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
        process.communicate()
        if tlray("show", f"{lake}/{table}").returncode == 0:
            seen.append((more, len(rows_of(lake, table))))
    result_of(tlray(*arguments(lake, table), *SHORT_LEASE, mode))
    assert_same(rows_of(lake, table), reference)
    assert tlray("verify", f"{lake}/{table}").returncode == 0
    print(f"(objects before the kill, rows after it): {seen} of {len(reference)}")


def test_a_killed_encoder_is_replaced(lake: str, reference: pl.DataFrame, ray_cluster: RayCluster) -> None:
    with workers_killed(ray_cluster, f"{lake}/actor-killed", 2) as killed:
        outcome = tlray(*arguments(lake, "actor-killed"))
    assert killed and result_of(outcome)["ok"] == IMAGES
    assert_same(rows_of(lake, "actor-killed"), reference)


def test_a_worker_that_computes_other_numbers_stops_the_run(lake: str) -> None:
    store = open_store(lake)
    assert tlray(*arguments(lake, "golden"), "--local", "--source.include", "dog/000?0.jpg").returncode == 0
    document = json.loads(store.read(f"{lake}/golden/recipe.json").data)
    golden = np.array(document["golden"]["embedding"])
    document["golden"]["embedding"] = golden[:, ::-1].tolist()
    store.write(f"{lake}/golden/recipe.json", json.dumps(document).encode())
    outcome = tlray(*arguments(lake, "golden"))
    assert outcome.returncode == 1
    assert "tlray extract: GoldenMismatchError: the encoder on node" in outcome.stderr
    assert "UDF transform" not in outcome.stderr and not stray_lines(outcome.stderr)


def run(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_a_job_can_be_submitted(lake: str, reference: pl.DataFrame, ray_cluster: RayCluster, tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    config = tmp_path / "job.yaml"
    config.write_text(tlray(*arguments(lake, "submitted"), "--print-config").stdout)
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    command = [
        *(str(Path(sysconfig.get_path("scripts")) / "ray"), "job", "submit"),
        *("--runtime-env-json", json.dumps({"env_vars": environment})),
        *("--", sys.executable, str(root / "jobs" / "extract.py"), "--config", str(config)),
    ]
    env = os.environ | {"RAY_ADDRESS": ray_cluster.dashboard}
    while "No available agent" in (process := run(command, env)).stdout + process.stderr:  # a cluster starts them last
        time.sleep(1)
    assert process.returncode == 0, process.stdout + process.stderr
    lines = [line for line in process.stdout.splitlines() if line.startswith('{"table"')]
    assert json.loads(lines[-1])["ok"] == IMAGES
    assert_same(rows_of(lake, "submitted"), reference)


def test_a_cluster_with_gpus_makes_the_same_table(
    lake: str, reference: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its encoders take a GPU each, while tasks decode and write; where torch sees none of them, they compute on the CPU."""
    with RayCluster(tmp_path, gpus=1) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        process, encoders = start_tlray(*arguments(lake, "on-gpus")), list[int]()
        while process.poll() is None and not (encoders := cluster.pids("EncoderActor")):
            time.sleep(0.05)
        stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert len(encoders) == 1
    result = json.loads(stdout.splitlines()[-1])
    assert (result["ok"], result["failed"]) == (IMAGES, BAD)
    assert {"decode", "transfer", "encode", "write"} <= set(result["stages"])
    assert_same(rows_of(lake, "on-gpus"), reference)


def test_a_cluster_that_is_gone_is_not_joined(tmp_path: Path) -> None:
    noted = tmp_path / "ray_current_cluster"
    assert not answers(noted)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        noted.write_text(f"127.0.0.1:{port}\n")
        assert answers(noted)
    assert not answers(noted)
    noted.write_text("")
    assert not answers(noted)


@pytest.mark.parametrize(
    ("node_cpus", "gpus", "actors", "cpus", "lanes"),
    [
        ([1], 0, 1, 1, 1),
        ([2], 0, 1, 2, 2),
        ([0, 2, 2], 0, 2, 2, 2),  # a head that is not to work
        ([16, 16, 4], 0, 9, 4, 4),
        ([64] * 4, 0, 32, 8, 8),
        ([16], 1, 1, 0, None),
        ([0, *[16] * 8], 8, 8, 0, None),
    ],
)
def test_a_cluster_is_shared_out(node_cpus: list[int], gpus: int, actors: int, cpus: int, lanes: int | None) -> None:
    workers = share_out(node_cpus, gpus)
    assert (workers.actors, workers.cpus, workers.lanes) == (actors, cpus, lanes)
    assert workers.gpus == (1 if gpus else 0)
    assert workers.slots == sum(node_cpus)
    assert workers.actors * workers.cpus <= sum(node_cpus)
