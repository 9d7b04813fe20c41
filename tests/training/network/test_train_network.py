"""Networks trained in one process: against plain torch, from images and from activations, killed and resumed, refused."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tests.training.networks import (
    PHOTOS,
    extract_activations,
    labels_of,
    largest_difference,
    photos_in,
    pixels,
    tensors_of,
    training,
)
from tlray.errors import BackboneError, ConfigError, RecipeMismatchError, TooManyFailuresError
from tlray.lake.storage.local_copy import local_copy
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import to_path, to_uri
from tlray.models.backbones.images import load_backbone, resolve_backbone
from tlray.models.layers.pooling import Layout, Pooling
from tlray.models.layers.taps import TapRunner
from tlray.training.examples.examples import Split
from tlray.training.model.model import load_model
from tlray.training.network.learner.schedule import blocks_in_training, rate_factor
from tlray.training.network.saved.checkpoints import Checkpoints
from tlray.training.network.train_network import _examples
from tlray.training.train import train


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos_in(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def table(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return extract_activations(photos, tmp_path_factory.mktemp("lake") / "table")


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `training` as it is."""
    out = tmp_path_factory.mktemp("models") / "model"
    train(training(photos, out))
    return out


def rows_of(config: Any, split: Split) -> tuple[list[Path], Tensor]:
    """Paths and targets of a split's images."""
    examples, _, _ = _examples(config, None)
    positions = examples.positions(split)
    paths = [to_path(examples.uris[int(position)].as_py()) for position in positions]
    return paths, torch.from_numpy(examples.targets[positions])


def test_it_learns_what_plain_torch_learns(photos: Path, tmp_path: Path) -> None:
    """Against a loop of a few lines, on whole batches: weights, and the batch norms that are not frozen."""
    network = {"backbone_rate": 0.5, "warmup": 0.0, "clip": 0.0, "weight_decay": 0.1}
    config = training(photos, tmp_path / "out", network=network, batch_size=1000, epochs=3, patience=1000)
    train(config)
    start = resolve_backbone(config.recipe, local_copy)
    paths, targets = rows_of(config, Split.TRAIN)
    images = pixels(paths, start.recipe.preprocessing)
    model: nn.Module = timm.create_model("test_resnet")
    model.load_state_dict(start.module.state_dict())
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad = False
    learning = nn.ModuleList([model.layer3, model.layer4]).requires_grad_(True)
    torch.manual_seed(config.seed)
    head = nn.Linear(model.num_features, 2)
    parts = [(head, 0.002), (learning, 0.001)]
    groups = [
        {"params": [p for p in part.parameters() if (p.ndim > 1) == decays], "lr": lr, "weight_decay": 0.1 if decays else 0.0}
        for part, lr in parts
        for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs)
    states = []
    for _ in range(config.epochs):
        learning.train()
        loss = F.cross_entropy(head(model.forward_head(model.forward_features(images), pre_logits=True)), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cosine.step()
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    card = load_model(to_uri(str(tmp_path / "out"))).card
    expected = states[card.training["best_epoch"] - 1]
    found = {name: tensor for name, tensor in tensors_of(tmp_path / "out").items() if not name.startswith("head/")}
    assert largest_difference(found, expected) < 1e-4
    assert largest_difference(found, dict(start.module.state_dict())) > 1e-2


def test_a_model_folder_gives_the_numbers_of_its_card(photos: Path, trained: Path) -> None:
    config = training(photos, trained)
    model = load_model(to_uri(str(trained)))
    backbone = load_backbone(model.card.recipe, local_copy)
    pooling = Pooling("avg", 32, 32, Layout())
    assert set(model.card.metrics) == {"train", "validation", "test"}
    for split in Split:
        paths, targets = rows_of(config, split)
        with torch.inference_mode():
            images = pixels(paths, backbone.recipe.preprocessing)
            features = TapRunner(backbone.module, [model.card.tap], pooling)(images)[model.card.tap]
            scores = model.head(features.flatten(1))
        evaluation = model.card.metrics[split.name.lower()]
        assert evaluation.rows == len(paths)
        assert evaluation.loss == pytest.approx(float(F.cross_entropy(scores, targets)), abs=1e-3)
        assert evaluation.accuracy.value == pytest.approx(float((scores.argmax(1) == targets).float().mean()))


def test_activations_give_the_weights_that_images_give(trained: Path, photos: Path, table: Path, tmp_path: Path) -> None:
    of_table = {"source": None, "table": str(table), "recipe": None}
    result = train(training(photos, tmp_path / "out", network={"augment": None, "freeze": None}, **of_table))
    assert result["frozen_up_to"] == "layer2"
    found, expected = tensors_of(tmp_path / "out"), tensors_of(trained)
    assert largest_difference(found, expected) < 1e-4
    start = resolve_backbone(training(photos, trained).recipe, local_copy).module.state_dict()
    moved = {name for name, tensor in start.items() if not torch.equal(tensor, found[name])}
    assert {name.partition(".")[0] for name in moved} == {"layer3", "layer4"}
    assert {"layer4.0.bn1.running_mean", "layer4.0.conv1.weight"} <= moved
    # The network is now weights like any others, and a run that is done is not done again.
    assert load_backbone(load_model(to_uri(str(tmp_path / "out"))).card.recipe, local_copy).shapes == {"embedding": (96,)}
    again = training(photos, tmp_path / "out", network={"augment": None, "freeze": None}, **of_table)
    assert train(again) | {"seconds": 0} == result | {"action": "unchanged", "seconds": 0}


DRIVER = (
    "import sys; from tlray.config import TrainConfig; from tlray.training.train import train;"
    "train(TrainConfig.model_validate_json(sys.argv[1]))"
)
WAITING_DRIVER = f"""
import time
from tlray.training.network.saved.checkpoints import Checkpoints
save = Checkpoints.save
def save_and_wait(self, step, parts, progress):
    save(self, step, parts, progress)
    time.sleep(600 if step == 13 else 0)
Checkpoints.save = save_and_wait
{DRIVER}
"""
"""Waits to be killed, so that no run ends before it is."""


def test_a_killed_driver_goes_on_in_the_middle_of_an_epoch(
    photos: Path, table: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def config(name: str) -> Any:
        network = {"augment": None, "freeze": None, "checkpoint_every": 1, "ema": 0.9}
        changes = {"source": None, "table": str(table), "recipe": None, "batch_size": 2, "epochs": 12, "patience": 1000}
        return training(photos, tmp_path / name, network=network, **changes)

    process = subprocess.Popen([sys.executable, "-c", WAITING_DRIVER, config("killed").model_dump_json()])
    wait_for_step(tmp_path / "killed", 13, process.poll)
    process.kill()
    process.wait()
    folder = next((tmp_path / "killed" / "checkpoints").iterdir())
    checkpoints = Checkpoints(f"file://{folder}")
    _, progress = checkpoints.read(checkpoints.last_step())
    assert (progress.epoch, progress.step) == (1, 4)
    with caplog.at_level("INFO"):
        train(config("killed"))
    assert "going on after epoch 1, step 4 of 9" in caplog.text
    train(config("reference"))
    assert largest_difference(tensors_of(tmp_path / "killed"), tensors_of(tmp_path / "reference")) < 1e-5
    cards = [load_model(to_uri(str(tmp_path / name))).card for name in ("killed", "reference")]
    assert [card.training["rows_trained_on"] for card in cards] == [12 * cards[0].metrics["train"].rows] * 2
    assert cards[0].metrics == cards[1].metrics
    assert not (tmp_path / "killed" / "checkpoints").exists()


def wait_for_step(out: Path | str, step: int, poll: Callable[[], int | None]) -> None:
    """Until a run's newest checkpoint is that of a step."""
    folder = to_uri(f"{out}/checkpoints")
    while poll() is None:
        if any(
            uri.endswith(f"/step-{step:010d}.safetensors")
            for page in open_store(folder).list(folder)
            for uri in page["uri"].to_pylist()
        ):
            return
        time.sleep(0.1)
    raise AssertionError("the run ended before it could be killed")


def test_all_options_together(photos: Path, tmp_path: Path) -> None:
    network = {
        "start": "scratch",
        "freeze": "none",
        "augment": ["crop", "flip"],
        "unfreeze": 2,
        "ema": 0.9,
        "precision": "bf16",
        "depth_decay": 0.7,
        "warmup": 0.3,
    }
    head = {"kind": "mlp", "hidden": [8], "dropout": 0.2}
    changes = {"class_weights": "balanced", "head": head, "epochs": 3, "split": {"validation": 0.2, "test": 0.0}}
    result = train(training(photos, tmp_path / "out", network=network, **changes))
    assert (result["epochs"], result["frozen_up_to"], set(result["metrics"])) == (3, None, {"train", "validation"})
    card = load_model(to_uri(str(tmp_path / "out"))).card
    assert card.recipe.weights.endswith("network.safetensors")
    assert all(epoch["train_loss"] > 0 for epoch in card.training["history"])


def test_training_stops_when_validation_gets_no_better(photos: Path, table: Path, tmp_path: Path) -> None:
    changes = {"source": None, "table": str(table), "recipe": None, "epochs": 50, "patience": 2}
    network = {"augment": None, "freeze": "all", "learning_rate": 1e-30}
    with pytest.raises(RecipeMismatchError, match=r"activations of layer2.*freeze all means"):
        train(training(photos, tmp_path / "out", network=network, **changes))
    network = {"learning_rate": 1e-30, "backbone_rate": 1e-30, "augment": None}
    result = train(training(photos, tmp_path / "out", network=network, **changes))
    assert result["epochs"] <= result["best_epoch"] + 2 < 50


def test_an_unreadable_image_is_counted_and_too_many_end_it(photos: Path, tmp_path: Path) -> None:
    folder = photos_in(tmp_path / "photos")
    broken = folder / "cat" / "00001.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(TooManyFailuresError, match=r"1 of 30 images cannot be read.*00001.jpg: truncated"):
        train(training(folder, tmp_path / "strict", network={"max_failed_fraction": 0.0}))
    result = train(training(folder, tmp_path / "lenient", network={"max_failed_fraction": 0.1}))
    assert result["unreadable_images"] == 1
    metrics = load_model(to_uri(str(tmp_path / "lenient"))).card.metrics
    assert sum(evaluation.rows for evaluation in metrics.values()) == PHOTOS - 1


def test_nothing_is_learned_from_images_that_cannot_be_read(tmp_path: Path) -> None:
    """Neither by weights nor by batch norms: without these images a training on whole batches gives the same network."""
    folder = photos_in(tmp_path / "photos")
    rows = labels_of(folder).read_text().splitlines()
    broken = [row for row in rows if row.endswith(",train")][1:9:2]
    for row in broken:
        (tmp_path / row.split(",")[0]).write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    network = {"max_failed_fraction": 0.5}
    changes = {"batch_size": 1000, "epochs": 2}
    with_them = train(training(folder, tmp_path / "with", network=network, **changes))
    for row in broken:
        (tmp_path / row.split(",")[0]).unlink()
    labels_of(folder).write_text("\n".join(row for row in rows if row not in broken))
    without = train(training(folder, tmp_path / "without", network=network, **changes))
    assert (with_them["unreadable_images"], without["unreadable_images"]) == (4, 0)
    assert largest_difference(tensors_of(tmp_path / "with"), tensors_of(tmp_path / "without")) < 1e-4
    losses = [result["metrics"]["train"]["loss"] for result in (with_them, without)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_batch_of_which_nothing_can_be_read_is_no_step(tmp_path: Path) -> None:
    folder = photos_in(tmp_path / "photos")
    for path in sorted(folder.glob("dog/*.jpg"))[:3]:
        path.write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    network = {"freeze": "all", "max_failed_fraction": 0.5}
    result = train(training(folder, tmp_path / "out", network=network, batch_size=1))
    card = load_model(to_uri(str(tmp_path / "out"))).card
    assert card.training["rows_trained_on"] == 2 * result["metrics"]["train"]["rows"] < 2 * 18


def test_a_batch_of_one_that_norms_cannot_take_is_named(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a step has 1 image \(18 to train on in steps of batch_size 1\).*give another"):
        train(training(photos, tmp_path / "out", network={"freeze": "none"}, batch_size=1))


def test_refusals(photos: Path, table: Path, trained: Path, tmp_path: Path) -> None:
    def refused(match: str, error: type[ConfigError] = ConfigError, **changes: Any) -> None:
        network = changes.pop("network", {})
        with pytest.raises(error, match=match):
            train(training(photos, changes.pop("to", tmp_path / "out"), network=network, **changes))

    of_table = {"source": None, "table": str(table)}
    refused(r"cannot cut at 'layer9'.*layer1, layer2.0", BackboneError, network={"freeze": "layer9"})
    refused("give one of the two", table=str(table))
    refused("which a table of activations has fixed", network={"start": "scratch", "augment": None}, **of_table)
    refused("has a closed form", head={"kind": "ridge"})
    refused("are of an MLP", head={"hidden": [8]})
    other = {"backbone": "timm:test_resnet", "weights": "random:8", "preprocessing": {"resize": 40, "crop": 32}}
    refused(r"weights_sha256: '", RecipeMismatchError, network={"augment": None}, **of_table | {"recipe": other})
    refused(r"layer2, but network.freeze layer1 means layer1", RecipeMismatchError, network={"freeze": "layer1"}, **of_table)
    pooled = extract_activations(photos, tmp_path / "pooled", pool="avg")
    refused(r"pool: 'none', 'avg'", RecipeMismatchError, source=None, table=str(pooled))
    refused(r"holds a model of another config \(it differs in epochs\).*--rebuild", to=trained, epochs=1)
    planned = train(training(photos, trained, epochs=1, dry_run=True, rebuild=True))
    assert planned["dry_run"] and planned["action"] == "retrained" and planned["frozen_up_to"] == "layer2"
    assert planned["rows"] == {"train": 18, "validation": 6, "test": 6}


def test_rates_over_time() -> None:
    factors = [rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert factors[10] == 1.0 and factors[55] == pytest.approx(0.5) and 0 < factors[-1] < 0.001
    assert [blocks_in_training(epoch, 10, 4) for epoch in range(6)] == [0, 2, 5, 7, 10, 10]
    assert blocks_in_training(0, 10, 0) == 10
