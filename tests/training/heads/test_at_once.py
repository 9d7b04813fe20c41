"""Two trainings of one model at once: one trains, the other waits or says who holds it."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.training.held import held
from tests.training.networks import photos_in, training
from tests.training.tables import blobs, config_for, write_table
from tlray.errors import TableLockedError
from tlray.training.train import train


def test_heads(tmp_path: Path) -> None:
    features, classes = blobs(300)
    write_table(tmp_path / "table", {"embedding": features}, [f"class {one}" for one in classes])
    said = r"model is held by run somebody else's .*--wait does"
    with held(tmp_path / "model", "somebody else's"), pytest.raises(TableLockedError, match=said):
        train(config_for(tmp_path))
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda _: train(config_for(tmp_path, wait=True)), range(2)))
    assert sorted(result["action"] for result in results) == ["trained", "unchanged"]
    assert results[0]["metrics"] == results[1]["metrics"]


def test_networks(tmp_path: Path) -> None:
    """Who has waited looks again."""
    photos = photos_in(tmp_path / "photos")
    train(training(photos, tmp_path / "first", epochs=1))
    with ThreadPoolExecutor(1) as threads:
        with held(tmp_path / "second", "somebody else's"):
            with pytest.raises(TableLockedError, match="held by run somebody else's"):
                train(training(photos, tmp_path / "second", epochs=1))
            waiting = threads.submit(train, training(photos, tmp_path / "second", epochs=1, wait=True))
            with pytest.raises(TimeoutError):
                waiting.result(timeout=1)
            no_lease = shutil.ignore_patterns("_lease")
            # A link is there whole or not at all, whenever the one that waits looks.
            shutil.copytree(tmp_path / "first", tmp_path / "second", dirs_exist_ok=True, ignore=no_lease, copy_function=os.link)
        assert waiting.result()["action"] == "unchanged"
