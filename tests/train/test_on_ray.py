"""Training on a Ray cluster: several processes learn what one does, and lost ones are replaced."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.conftest import use_server
from tests.ray_cluster import RayCluster, processes_named
from tests.train.networks import largest_difference, photos_in, tensors_of, training
from tests.train.test_network import DRIVER, wait_for_step
from tlray.demo.s3_server import S3Server
from tlray.lake.storage import open_store, to_uri
from tlray.train.model import load_model
from tlray.train.network import train_network
from tlray.train.on_ray import own_interrupts

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

Place = tuple[Path, S3Server, dict[str, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A folder with photos, a store, and a driver's environment.

    The cluster is these tests' own: for three minutes it takes what a killed driver had asked for as in use.
    """
    folder = tmp_path_factory.mktemp("train")
    photos_in(folder / "photos")
    with pytest.MonkeyPatch.context() as patch, S3Server() as server:
        use_server(server, patch)
        with RayCluster(tmp_path_factory.mktemp("ray")) as cluster:
            yield folder, server, {**os.environ, **cluster.env, "RAY_DEDUP_LOGS": "0"}


def config(folder: Path, out: Path | str, *, network: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A training of batch norms too, whose rows several processes share."""
    settings = {"freeze": "none", "workers": 2, "checkpoint_every": 1, **(network or {})}
    return training(folder / "photos", out, network=settings, batch_size=5, patience=1000, **changes)


@contextmanager
def driver(config: Any, env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that trains, and writes to a log."""
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-c", DRIVER, config.model_dump_json()], env=env, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def remove_bucket(name: str) -> None:
    """With all that is in it, though a run goes on writing."""
    bucket = boto3.resource("s3").Bucket(name)
    for _ in range(100):
        bucket.objects.delete()
        try:
            bucket.delete()
        except ClientError:
            continue
        return
    raise AssertionError(f"{name} is still there")


def test_an_interrupted_run_is_not_one_that_went_well() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), own_interrupts():
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.timeout(600)
def test_an_error_of_one_worker_ends_them_all(place: Place) -> None:
    """The first one alone writes checkpoints; the other one waits for it, by itself for half an hour."""
    folder, server, env = place
    bucket = server.make_bucket("gone")
    log = folder / "gone.log"
    with driver(config(folder, f"{bucket}/model", epochs=10_000, local=False), env, log) as process:
        wait_for_step(f"{bucket}/model", lambda step: step >= 2, process)
        remove_bucket("gone")
        assert process.wait(timeout=200) == 1
    assert re.search(r"SourceError: s3://gone/.*there is no bucket 'gone'", log.read_text().splitlines()[-1])
    assert "going on after" not in log.read_text()


@pytest.mark.timeout(600)
def test_kill_9_of_the_driver_and_of_a_worker_change_nothing(place: Place) -> None:
    """Two workers learn what one process does that nobody disturbs, batch norms included; no row counts twice."""
    folder, server, env = place
    out, log, epochs = f"{server.make_bucket('models')}/killed", folder / "killed.log", 6
    train_network(config(folder, folder / "calm", epochs=epochs))
    elastic = config(folder, out, epochs=epochs, local=False, network={"workers": 1, "max_workers": 2})
    with driver(elastic, env, log) as process:
        wait_for_step(out, lambda step: step % 4 in (1, 2), process)
        process.kill()
    with driver(config(folder, out, epochs=epochs, local=False), env, log) as process:
        step = wait_for_step(out, lambda _: "going on after epoch" in log.read_text(), process)
        wait_for_step(out, lambda later: later > step, process)
        os.kill(processes_named("RayTrainWorker")[-1], signal.SIGKILL)
        assert process.wait(timeout=250) == 0, log.read_text()[-3000:]
    assert log.read_text().count("going on after epoch") == 2
    cards = [load_model(to_uri(str(one))).card for one in (folder / "calm", out)]
    assert [card.training["rows_trained_on"] for card in cards] == [epochs * cards[0].metrics["train"].rows] * 2
    assert largest_difference(tensors_of(out), tensors_of(folder / "calm")) < 1e-4
    for split, evaluation in cards[0].metrics.items():
        assert cards[1].metrics[split].accuracy == evaluation.accuracy
        assert cards[1].metrics[split].loss == pytest.approx(evaluation.loss, abs=1e-4)
    assert not list(open_store(out).list(f"{out}/checkpoints"))
