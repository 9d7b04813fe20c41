"""Training on a Ray cluster: several processes learn what one does, lost ones are replaced, and one's error ends them all."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.conftest import use_server
from tests.fault_proxy import Fault, FaultProxy, Request
from tests.ray_cluster import RayCluster
from tests.training.network.test_train_network import DRIVER, wait_for_step
from tests.training.networks import largest_difference, photos_in, tensors_of, training
from tlray.demo.s3_server import S3Server
from tlray.errors import AccessError
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import to_uri
from tlray.training.model.model import load_model
from tlray.training.network.on_ray import own_interrupts
from tlray.training.network.saved.checkpoints import Checkpoints, Progress
from tlray.training.train import train

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

STEPS = 4
"""Of an epoch."""

JOINING_DRIVER = f"import json, ray, sys; ray.init(runtime_env=json.loads(sys.argv[2]), logging_level='WARNING'); {DRIVER}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server, ray_cluster: RayCluster) -> Iterator[Path]:
    """With photos, in the environment of a driver."""
    folder = tmp_path_factory.mktemp("train")
    photos_in(folder / "photos")
    with pytest.MonkeyPatch.context() as patch:
        use_server(s3_server, patch)
        patch.setenv("RAY_ADDRESS", ray_cluster.address)
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process of each group, for nodes that are to be taken away
        yield folder


def config(folder: Path, out: Path | str, *, network: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A training of batch norms too, whose rows several processes share."""
    settings = {"freeze": "none", "workers": 2, "checkpoint_every": 1, **(network or {})}
    return training(folder / "photos", out, network=settings, batch_size=5, patience=1000, **changes)


class HeldBack(FaultProxy):
    """A proxy that lets no checkpoint after a step through: a run waits there to be killed, and asks again meanwhile."""

    def __init__(self, upstream: str, step: int) -> None:
        super().__init__(upstream, self._decide)
        self.step = step

    def _decide(self, request: Request) -> Fault | None:
        found = re.search(r"/step-(\d+)\.safetensors$", request.key)
        return "unavailable" if request.method == "PUT" and found and int(found[1]) > self.step else None


def left_behind(out: str, cluster: RayCluster) -> Progress:
    """How far a run had come, once its workers of this moment have ended."""
    workers = set(cluster.pids("RayTrainWorker"))
    while workers & set(cluster.pids("RayTrainWorker")):
        time.sleep(0.2)
    written = [uri for page in open_store(out).list(f"{out}/checkpoints") for uri in page["uri"].to_pylist()]
    checkpoints = Checkpoints(next(uri for uri in written if "/step-" in uri).rpartition("/")[0])
    return checkpoints.read(checkpoints.last_step())[1]


def kill_a_worker(out: str, cluster: RayCluster, step: int, ended: threading.Event) -> Progress:
    wait_for_step(out, step, lambda: 0 if ended.is_set() else None)
    os.kill(cluster.pids("RayTrainWorker")[-1], signal.SIGKILL)
    return left_behind(out, cluster)


def test_an_error_of_one_worker_ends_them_all(folder: Path, s3_server: S3Server) -> None:
    """The first one alone writes checkpoints; the other one waits for it, by itself for half an hour.

    The only elastic run, and none is killed before it: for three minutes it would wait for what that had asked for.
    """
    out, elastic = f"{s3_server.make_bucket('refused')}/model", {"workers": 1, "max_workers": 2}
    with FaultProxy(
        s3_server.endpoint, lambda request: "denied" if request.method == "PUT" and "/step-" in request.key else None
    ) as proxy:
        ray.init(runtime_env={"env_vars": {"AWS_ENDPOINT_URL": proxy.endpoint}}, logging_level="WARNING")
        try:
            with pytest.raises(AccessError, match=rf"^{re.escape(out)}/checkpoints/.*/step-0000000001.*S3 refuses"):
                train(config(folder, out, epochs=10_000, local=False, network=elastic))
        finally:
            ray.shutdown()
        assert proxy.faults["denied"] == 1  # nobody tried again


def test_kill_9_of_the_driver_and_of_a_worker_change_nothing(
    folder: Path, s3_server: S3Server, ray_cluster: RayCluster
) -> None:
    """One worker, then two, then one of them anew learn what one process does that nobody disturbs; no row counts twice."""
    out, epochs, ended = f"{s3_server.make_bucket('models')}/killed", 8, threading.Event()
    train(config(folder, folder / "calm", epochs=epochs))
    of_one = config(folder, out, epochs=epochs, local=False, network={"workers": 1})
    with HeldBack(s3_server.endpoint, STEPS + 2) as proxy, ThreadPoolExecutor(1) as threads:
        environment = json.dumps({"env_vars": {"AWS_ENDPOINT_URL": proxy.endpoint}})
        driver = subprocess.Popen([sys.executable, "-c", JOINING_DRIVER, of_one.model_dump_json(), environment])
        try:
            wait_for_step(out, proxy.step, driver.poll)
        finally:
            driver.kill()
            driver.wait()
        seen = [left_behind(out, ray_cluster)]
        proxy.step = 3 * STEPS + 2
        killed = threads.submit(kill_a_worker, out, ray_cluster, proxy.step, ended)
        killed.add_done_callback(lambda _: setattr(proxy, "step", epochs * STEPS))
        ray.init(runtime_env=json.loads(environment), logging_level="WARNING")
        try:
            train(config(folder, out, epochs=epochs, local=False))
        finally:
            ray.shutdown()
            ended.set()
        seen.append(killed.result())
    assert [(progress.epoch, progress.step) for progress in seen] == [(1, 2), (3, 2)]
    cards = [load_model(to_uri(str(one))).card for one in (folder / "calm", out)]
    for progress in seen:  # how long epochs took says that they were not trained again
        assert cards[1].training["history"][: progress.epoch] == [epoch.model_dump() for epoch in progress.epochs]
    assert [card.training["rows_trained_on"] for card in cards] == [epochs * cards[0].metrics["train"].rows] * 2
    assert largest_difference(tensors_of(out), tensors_of(folder / "calm")) < 1e-4
    for split, evaluation in cards[0].metrics.items():
        assert cards[1].metrics[split].accuracy == evaluation.accuracy
        assert cards[1].metrics[split].loss == pytest.approx(evaluation.loss, abs=1e-4)
    assert not list(open_store(out).list(f"{out}/checkpoints"))


def test_an_interrupted_run_is_not_one_that_went_well() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), own_interrupts():
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
