"""Networks' trainings that are run again, go on, or do not begin; and what a regression's checkpoints leave to its end."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.held import held
from tests.training.networks import extract_activations, largest_difference, photos_in, tensors_of, training
from tlray.errors import ExamplesError, StorageError, TableLockedError, TlrayError
from tlray.lake.storage.uri import to_uri
from tlray.recipe import IMAGE_RULES
from tlray.training.model.model import load_model
from tlray.training.network import worker as work
from tlray.training.network.processes import Alone
from tlray.training.network.saved.checkpoints import Checkpoints, Progress
from tlray.training.network.train_network import _forget_done
from tlray.training.train import train as run


def test_the_place_and_the_images_make_a_training_not_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos_in(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)

    def train(table: Path, out: Path) -> str:
        config = training(
            tmp_path / "photos", out, network={"augment": None, "freeze": None}, epochs=1, source=None, table=str(table)
        )
        return str(run(config)["action"])

    extract_activations(Path("photos"), Path("table"))
    assert train(Path("table"), Path("out")) == "trained"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    left = tmp_path / "out" / "checkpoints" / "left"
    left.mkdir(parents=True)
    assert train(Path("../table"), Path("../out")) == "unchanged"
    assert not left.exists()
    (tmp_path / "photos" / "cat" / "00001.jpg").write_bytes((tmp_path / "photos" / "dog" / "00002.jpg").read_bytes())
    extract_activations(tmp_path / "photos", tmp_path / "table")
    assert train(tmp_path / "table", tmp_path / "out") == "retrained"


def test_a_regression_reaches_targets_far_from_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it goes on after its last epoch: what is folded into the head is folded once."""
    photos = photos_in(tmp_path / "photos")
    uris = sorted(photos.glob("*/*.jpg"))
    (tmp_path / "labels.csv").write_text("uri,label\n" + "".join(f"{uri},{40 + at % 5 / 10}\n" for at, uri in enumerate(uris)))

    def config(name: str) -> Any:
        changes = {
            "task": "regression",
            "split": {"validation": 0.2, "test": 0.2},
            "labels": str(tmp_path / "labels.csv"),
            "network": {"precision": "bf16"},
        }
        return training(photos, tmp_path / name, **changes)

    run(config("whole"))
    with monkeypatch.context() as patch, pytest.raises(StorageError, match="away"):
        patch.setattr(work, "_save", fail)
        run(config("again"))
    with held(tmp_path / "again", "train"), pytest.raises(TableLockedError, match=r"run train .* alive"):
        run(config("again"))
    run(config("again"))
    whole, again = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "again")
    assert largest_difference(whole, again) == 0
    metrics = load_model(to_uri(str(tmp_path / "again"))).card.metrics
    assert metrics["train"].mean_squared_error.value < 1


def test_a_training_keeps_the_rule_for_pixels_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models and checkpoints made before a change of the rule are found by the same command."""
    photos = photos_in(tmp_path / "photos")
    for name, dies in (("whole", False), ("killed", True)):
        with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
            patch.setattr("tlray.training.network.train_network.IMAGE_RULES", (2,))
            if dies:
                stack.enter_context(pytest.raises(StorageError, match="away"))
                patch.setattr(work, "_save", fail)
            run(training(photos, tmp_path / name, epochs=1))
    assert run(training(photos, tmp_path / "whole", epochs=1))["action"] == "unchanged"
    run(training(photos, tmp_path / "killed", epochs=1))
    cards = [load_model(to_uri(str(tmp_path / name))).card for name in ("whole", "killed")]
    assert [card.recipe.image_rule for card in cards] == [2, 2]
    assert cards[0].training["history"][0]["train_loss"] == cards[1].training["history"][0]["train_loss"]
    assert run(training(photos, tmp_path / "whole", epochs=1, rebuild=True))["action"] == "retrained"
    assert load_model(to_uri(str(tmp_path / "whole"))).card.recipe.image_rule == IMAGE_RULES[0]


def fail(*_: object) -> None:
    raise StorageError("away")


def test_what_a_finished_run_left_behind_is_forgotten(tmp_path: Path) -> None:
    checkpoints = Checkpoints(f"file://{tmp_path}/run")
    for is_done, expected in ((False, 7), (True, -1)):
        checkpoints.save(7, {"model": {"weight": torch.ones(2)}}, Progress(is_done=is_done))
        _forget_done(f"file://{tmp_path}/run")
        assert checkpoints.last_step() == expected


def test_all_processes_begin_or_none_does() -> None:
    class Two(Alone):
        size = 2

        def gather_text(self, text: str) -> list[str]:
            return ["", text or "no room"]

    with pytest.raises(TlrayError, match="another worker could not begin: no room"):
        work.agree(Two("cpu"), None)
    with pytest.raises(ExamplesError, match=r"^too large$"):
        work.agree(Two("cpu"), ExamplesError("too large"))
    work.agree(Alone("cpu"), None)
