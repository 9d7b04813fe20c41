"""One small cluster: zero-shot predictions of workers, and words in replicas of the service."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.photos import frame_of, result_of, tlray
from tests.ray_cluster import free_ports
from tests.search.build.test_on_ray import wait_for
from tests.search.service.serving import TOKEN
from tests.words.conftest import Collection
from tests.words.pictures import HELD_OUT
from tlray.config import ServeConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def cluster(towers_installed: None) -> Iterator[None]:
    """Its processes find the library of the two towers as this one does."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=256 * 2**20, logging_level="WARNING")
    yield
    ray.shutdown()


def test_workers_predict_as_one_process(collection: Collection, tmp_path: Path) -> None:
    arguments = ["predict", collection.pictures, *collection.recipe, "--classes", "cat,dog,7"]
    result_of(tlray(*arguments, "--out", tmp_path / "here", "--local"))
    result_of(tlray(*arguments, "--out", tmp_path / "there", "--no-local"))
    columns = ["uri", "prediction", "top_labels", "etag"]
    assert frame_of(tmp_path / "there").select(columns).equals(frame_of(tmp_path / "here").select(columns))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_replicas_answer_words(collection: Collection, tmp_path: Path) -> None:
    from tlray.search.service.replicas import serve_on_ray  # Ray Serve's own deprecations are none of ours

    (tmp_path / "token").write_text(TOKEN)
    keys = {"port": free_ports(1)[0], "replicas": 2, "images": False, "timeout_seconds": 300}
    config = ServeConfig(index=str(collection.index), token_file=str(tmp_path / "token"), **keys)
    stop = threading.Event()
    thread = threading.Thread(target=lambda: serve_on_ray(config, collection.index.as_uri(), stop))
    thread.start()
    try:
        client = wait_for(config.port, thread)
        for pair in HELD_OUT[:8]:
            text = "a photo of a {} {}.".format(*pair)
            (found,) = client.json("POST", "/api/search", {"queries": [{"text": text}], "k": 3})["answers"]
            (theirs,) = result_of(tlray("search", collection.index, "--text", text, "-k", "3"))["answers"]
            assert [hit["uri"] for hit in found] == [hit["uri"] for hit in theirs["hits"]]
    finally:
        stop.set()
        thread.join(300)
