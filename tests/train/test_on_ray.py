"""Training on a Ray cluster: several processes learn what one does, and lost ones are replaced."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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

VIT = {"backbone": "timm:test_vit", "weights": "random:7", "precision": {"compute": "fp32", "storage": "full"}}
"""Layer norms: a batch norm in training sees the rows of its own process only."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, dict[str, str]]]:
    """A folder with photos, a bucket, and a driver's environment."""
    folder = tmp_path_factory.mktemp("train")
    photos_in(folder / "photos")
    with pytest.MonkeyPatch.context() as patch, S3Server() as server:
        use_server(server, patch)
        bucket = server.make_bucket("models")
        with RayCluster(tmp_path_factory.mktemp("ray")) as cluster:
            yield folder, bucket, {**os.environ, **cluster.env}


def config(folder: Path, out: Path | str, *, network: dict[str, Any] | None = None, **changes: Any) -> Any:
    settings = {"freeze": "blocks.2", "workers": 2, "checkpoint_every": 1, **(network or {})}
    return training(folder / "photos", out, network=settings, recipe=VIT, batch_size=5, **changes)


def test_an_interrupted_run_is_not_one_that_went_well() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), own_interrupts():
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.timeout(300)
def test_two_workers_learn_what_one_does(place: tuple[Path, str, dict[str, str]]) -> None:
    folder, bucket, env = place
    outs = str(folder / "one"), f"{bucket}/two"
    train_network(config(folder, outs[0], epochs=1))
    two = config(folder, outs[1], epochs=1, local=False)
    subprocess.run([sys.executable, "-c", DRIVER, two.model_dump_json()], env=env, check=True, timeout=250)
    assert largest_difference(tensors_of(outs[1]), tensors_of(outs[0])) < 1e-4
    cards = [load_model(to_uri(out)).card for out in outs]
    assert cards[0].training["rows_trained_on"] == cards[1].training["rows_trained_on"] == cards[0].metrics["train"].rows
    for split, evaluation in cards[0].metrics.items():
        assert cards[1].metrics[split].accuracy == evaluation.accuracy
        assert cards[1].metrics[split].loss == pytest.approx(evaluation.loss, abs=1e-4)
    assert not list(open_store(bucket).list(f"{outs[1]}/checkpoints"))


@pytest.mark.timeout(300)
def test_a_killed_worker_is_replaced_and_nothing_counts_twice(place: tuple[Path, str, dict[str, str]]) -> None:
    folder, _, env = place
    changes = {"epochs": 12, "patience": 1000}
    train_network(config(folder, folder / "calm", **changes))
    killed = config(folder, folder / "killed", network={"max_workers": 2, "workers": 1}, local=False, **changes)
    log = folder / "killed.log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-c", DRIVER, killed.model_dump_json()], env=env, stdout=file, stderr=file)
    wait_for_step(folder / "killed", lambda step: step >= 6, process)
    workers = processes_named("RayTrainWorker")
    assert workers
    os.kill(workers[-1], signal.SIGKILL)
    assert process.wait(timeout=250) == 0, log.read_text()[-3000:]
    assert log.read_text().count("going on after epoch") == 1
    cards = [load_model(to_uri(str(folder / name))).card for name in ("calm", "killed")]
    assert [card.training["epochs"] for card in cards] == [12, 12]
    assert [card.training["rows_trained_on"] for card in cards] == [12 * cards[0].metrics["train"].rows] * 2
    assert cards[1].metrics["test"].loss == pytest.approx(cards[0].metrics["test"].loss, abs=0.02), json.dumps(
        [card.training["history"] for card in cards]
    )
