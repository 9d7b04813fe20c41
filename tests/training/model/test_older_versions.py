"""What version 0.1 left behind is what the same command makes today, whatever keys have come since."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import pytest
import safetensors.torch
import torch

from tlray.config import FitConfig, NetworkConfig, TrainConfig
from tlray.config.identity import NOT_IDENTITY, completed, differences, identity_of
from tlray.errors import ConfigError, RecipeMismatchError
from tlray.models.layers.heads import Head
from tlray.training.model.model import ModelCard, load_model
from tlray.training.model.rerun import Identity, action_of, config_identity, with_whole_uris
from tlray.training.network.saved.fingerprint import fingerprint

CARD_OF_A_HEAD = """{"format": 1, "created": "2026-11-30T09:38:33+00:00", "task": "single", "classes": ["c0", "c1", "c2"],
"head": {"kind": "linear", "inputs": 96, "outputs": 3, "hidden": [], "dropout": 0.0},
"recipe": {"format": 1, "backbone": "timm:test_resnet", "weights": "random:7",
 "weights_sha256": "bc22dadb3d5fb1a3fa10b6c1c395d8c08d4afb4b61285875ea6bc0556609ed9d", "taps": ["global_pool.pool"],
 "pool": "avg", "normalize": false, "precision": {"compute": "fp32", "storage": "half"},
 "preprocessing": {"resize": [40, 40], "fit": "cover", "crop": [32, 32], "fill": [0, 0, 0], "interpolation": "bilinear",
  "antialias": true, "scaled_decoding": false, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}, "image_rule": 2},
"recipe_id": "f87f436c4015dedefb1466f682c72888df5d8beacdbd3bdc03b112ad2795c6db", "tap": "global_pool.pool",
"table": "s3://lake/t", "table_version": 1, "source": null,
"training": {"strategy": "head", "identity": {"config": {"table": "s3://lake/t", "table_version": null, "source": null,
  "recipe": null, "labels": "labels.csv", "label_columns": ["label"], "separator": ";", "task": "single", "skip": [],
  "split": {"validation": 0.15, "test": 0.15, "column": null, "group": null, "group_duplicates": null},
  "head": {"kind": "linear", "hidden": [], "dropout": 0.0, "solver": "auto"},
  "grid": {"learning_rates": [], "weight_decays": [], "columns": []}, "refit": false, "epochs": 100, "patience": 5,
  "batch_size": 256, "class_weights": "none", "seed": 0, "network": null}, "table_version": 1,
  "labels": "520-1796031503920592978"},
 "counts": {"images": 30, "labelled": 30, "failed": 0}, "heads": 1, "refit": false,
 "grid": [{"column": "embedding", "solver": "cg", "learning_rate": null, "weight_decay": 1e-06, "epochs": 20,
  "best_epoch": 15, "validation_loss": 5.563098852690018e-07, "validation_accuracy": 1.0}], "knn": null, "seconds": 0.903},
"metrics": {"test": {"rows": 6, "loss": 4.921873761835935e-07, "accuracy": {"value": 1.0, "low": 0.6096657083436265,
 "high": 1.0}, "top5": null, "macro_f1": {"value": 1.0, "low": 1.0, "high": 1.0}, "mean_average_precision": null,
 "ece": 4.967053731282552e-07, "mean_squared_error": null, "r2": null, "per_class": [], "confusion": null}},
"config": {"table": "t", "table_version": null, "source": null, "recipe": null, "out": "head", "labels": "labels.csv",
 "label_columns": ["label"], "separator": ";", "task": "single", "skip": [],
 "split": {"validation": 0.15, "test": 0.15, "column": null, "group": null, "group_duplicates": null},
 "head": {"kind": "linear", "hidden": [], "dropout": 0.0, "solver": "auto"},
 "grid": {"learning_rates": [], "weight_decays": [], "columns": []}, "refit": false, "epochs": 100, "patience": 5,
 "batch_size": 256, "class_weights": "none", "seed": 0, "memory_bytes": null, "loggers": [], "logs": "tensorboard",
 "rebuild": false, "wait": false, "lease_seconds": 30.0, "dry_run": false, "network": null, "local": false},
"versions": {"tlray": "0.1.0", "torch": "2.15.0", "timm": "1.0.31", "torchvision": "0.29.2", "numpy": "2.4.6"},
"files": {"head.safetensors": "c33574cb5e6a5e85e03c4de3faa1e6f085f0ff71a6aab0535ab40615d5a6ca68",
 "curves.png": "8b038355ca86bbd022318bf15fab81f5da4a72e4560f639544e9140ea8d3460e"}}"""

OF_A_NETWORK = """{"training": {"strategy": "network",
 "fingerprint": "c81b3fa6678f9aff8a226f6933dd0b9d1a95cda448a195000d8ef3100b10b5df", "start": "weights",
 "frozen_up_to": "layer2", "frozen_sha256": "5136661d7f6f27f9412120aafff16e69209880a9e5c3a633d2ce01b0ca8eaab2",
 "trained_parameters": 21, "epochs": 2, "best_epoch": 2, "rows_trained_on": 36, "unreadable_images": 0,
 "counts": {"images": 30, "labelled": 30}, "history": [{"train_loss": 1.0576337973276775,
 "validation_loss": 1.0854662656784058, "accuracy": 0.6666666865348816, "seconds": 2.0266328919999523}]},
"table": null, "table_version": null, "source": "s3://photos/2026",
"config": {"table": null, "table_version": null, "source": {"uri": "s3://photos/2026", "format": "auto", "listing": null,
  "keys_from": null, "keys_to": null, "include": [], "exclude": [], "labels": "folder", "column": null,
  "max_image_bytes": 268435456, "max_image_pixels": 256000000},
 "recipe": {"backbone": "timm:test_resnet", "weights": "random:7", "weights_sha256": null, "taps": [], "pool": "avg",
  "normalize": false, "precision": {"compute": "fp32", "storage": "half"}, "preprocessing": {"resize": 40, "fit": null,
  "crop": 32, "interpolation": null, "antialias": null, "scaled_decoding": null, "mean": null, "std": null}},
 "out": "s3://models/network", "labels": "column", "label_columns": ["label"], "separator": ";", "task": "single",
 "skip": [], "split": {"validation": 0.15, "test": 0.15, "column": null, "group": null, "group_duplicates": null},
 "head": {"kind": "linear", "hidden": [], "dropout": 0.0, "solver": "auto"},
 "grid": {"learning_rates": [], "weight_decays": [], "columns": []}, "refit": false, "epochs": 2, "patience": 5,
 "batch_size": 8, "class_weights": "none", "seed": 0, "memory_bytes": null, "loggers": [], "logs": "tensorboard",
 "rebuild": false, "wait": false, "lease_seconds": 30.0, "dry_run": false,
 "network": {"freeze": "layer2", "start": "weights", "learning_rate": 0.002, "backbone_rate": null, "depth_decay": 1.0,
  "weight_decay": 0.01, "warmup": 0.05, "unfreeze": 0, "ema": 0.0, "clip": 1.0, "precision": "fp32", "augment": null,
  "workers": 1, "max_workers": null, "max_failures": 3, "max_failed_fraction": 0.01, "checkpoint_every": 200},
 "local": true}}"""
"""What the card of a network has otherwise than that of a head."""

RECIPE = {"backbone": "timm:test_resnet", "weights": "random:7", "precision": {"compute": "fp32"}}
FROM_IMAGES = {
    "source": {"uri": "s3://photos/2026/", "labels": "folder", "include": ["**/*.jpg"]},
    "recipe": RECIPE | {"preprocessing": {"resize": 40, "mean": [0.5, 0.25, 0.1]}},
    "out": "s3://models/x",
    "labels": "s3://photos/labels.csv",
    "epochs": 4,
    "batch_size": 8,
    "split": {"test": 0.2},
    "network": {"freeze": "layer2", "learning_rate": 1e-5, "workers": 3},
}
FROM_ACTIVATIONS = {
    "table": "s3://lake/activations",
    "out": "s3://models/y",
    "task": "regression",
    "label_columns": ["x", "é"],
    "skip": ["unlabelled"],
    "network": {},
    "head": {"kind": "mlp", "hidden": [8], "dropout": 0.1},
}


class NewerNetworkConfig(NetworkConfig):
    novelty: float = 0.5
    remark: Annotated[str, NOT_IDENTITY] = ""


class NewerFitConfig(FitConfig):
    novelty: NewerNetworkConfig = NewerNetworkConfig()


class NewerConfig(TrainConfig, NewerFitConfig):
    """A version to come, with new keys in a section, as a section, and where the others are."""

    late: bool = False
    network: NewerNetworkConfig | None = None


def folder_of(path: Path, card: dict[str, Any]) -> str:
    """A model folder whose head is drawn, with a card from the documents above."""
    torch.manual_seed(0)
    data = safetensors.torch.save(Head.of(ModelCard.model_validate(card).head).state_dict())
    path.mkdir()
    (path / "head.safetensors").write_bytes(data)
    card["files"] |= {"head.safetensors": hashlib.sha256(data).hexdigest()}
    (path / "model.json").write_text(json.dumps(card))
    return f"file://{path}"


@pytest.fixture
def head(tmp_path: Path) -> str:
    return folder_of(tmp_path / "head", json.loads(CARD_OF_A_HEAD))


@pytest.fixture
def network(tmp_path: Path) -> str:
    return folder_of(tmp_path / "network", json.loads(CARD_OF_A_HEAD) | json.loads(OF_A_NETWORK))


def identity_of_head(kind: type[TrainConfig] = TrainConfig, **changes: Any) -> Identity:
    config = with_whole_uris(kind.model_validate({"table": "s3://lake/t", "out": "x", "labels": "labels.csv"} | changes))
    return Identity(
        config=config_identity(config, config.table),
        recipe_id="f87f436c4015dedefb1466f682c72888df5d8beacdbd3bdc03b112ad2795c6db",
        table_version=1,
        labels="520-1796031503920592978",
    )


def test_the_head_is_unchanged_for_the_same_command(head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # its labels are named as they were typed
    model = load_model(head)
    recipe = model.card.recipe
    assert action_of(head, identity_of_head(), recipe, rebuild=False) == "unchanged"
    assert action_of(head, identity_of_head().model_copy(update={"table_version": 2}), recipe, rebuild=False) == "retrained"
    with pytest.raises(ConfigError, match=r"it differs in split.test, task\)"):
        action_of(head, identity_of_head(task="multi", split={"test": 0.2}), recipe, rebuild=False)
    with pytest.raises(RecipeMismatchError, match="pool: 'avg', 'max'"):
        other = recipe.model_copy(update={"pool": "max"})
        action_of(head, identity_of_head().model_copy(update={"recipe_id": other.recipe_id}), other, rebuild=False)


def test_keys_that_came_later_do_not_orphan_it(head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tlray.training.model.rerun.TrainConfig", NewerConfig)
    recipe = load_model(head).card.recipe
    assert action_of(head, identity_of_head(NewerConfig), recipe, rebuild=False) == "unchanged"
    assert action_of(head, identity_of_head(NewerConfig, novelty={"remark": "x"}), recipe, rebuild=False) == "unchanged"
    with pytest.raises(ConfigError, match=r"it differs in late, novelty.novelty\)"):
        action_of(head, identity_of_head(NewerConfig, late=True, novelty={"novelty": 0.7}), recipe, rebuild=False)


def test_the_network_is_unchanged_for_the_same_command(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    card = load_model(network).card
    config = TrainConfig.model_validate(card.config)
    own = Identity(
        config=config_identity(config, None), recipe_id="of today", examples="e", fingerprint=card.training["fingerprint"]
    )
    assert action_of(network, own, card.recipe, rebuild=False) == "unchanged"
    others = own.model_copy(update={"fingerprint": "another"})
    assert action_of(network, others, card.recipe, rebuild=False) == "retrained"
    changed = config.model_copy(update={"epochs": 3})
    with pytest.raises(ConfigError, match=r"it differs in epochs\)"):
        action_of(network, others.model_copy(update={"config": config_identity(changed, None)}), card.recipe, rebuild=False)
    monkeypatch.setattr("tlray.training.model.rerun.TrainConfig", NewerConfig)
    newer = config_identity(NewerConfig.model_validate(card.config), None)
    assert action_of(network, others.model_copy(update={"config": newer}), card.recipe, rebuild=False) == "retrained"


@pytest.mark.parametrize(
    ("fields", "table", "expected"),
    [
        (FROM_IMAGES, "", "72c8f3013f64e440753d9669817c49c126348220d5311fbc19151549cb3e7466"),
        (FROM_ACTIVATIONS, "t" * 64, "d3ce3b853b5eedac1fb0acb336b40c04c0ca5003ce07a39b061d8c21135897a3"),
    ],
)
def test_fingerprints_are_those_that_version_0_1_computed(fields: dict[str, Any], table: str, expected: str) -> None:
    """They name the folder of the checkpoints, from which a run goes on."""

    def of(kind: type[TrainConfig], **changes: Any) -> str:
        config = with_whole_uris(kind.model_validate(fields | changes))
        return fingerprint(config, "r" * 64, "layer2", table, b"shared")

    assert of(TrainConfig) == of(TrainConfig, lease_seconds=3, dry_run=True, memory_bytes=5, out="s3://models/z") == expected
    assert of(NewerConfig) == expected
    assert of(NewerConfig, late=True) != expected
    assert of(NewerConfig, novelty={"novelty": 0.7}) != expected
    assert of(NewerConfig, network=fields["network"] | {"novelty": 0.7}) != expected
    assert of(NewerConfig, network=fields["network"] | {"remark": "x"}) == expected


def test_every_key_of_a_document_counts_or_is_marked() -> None:
    whole = TrainConfig(
        out="x", memory_bytes=5, network=NetworkConfig(max_workers=4), source={"uri": "y"}, recipe={"backbone": "z"}
    )
    document = identity_of(whole)
    assert set(differences(document, whole.model_dump(mode="json"))) == {
        *("network.workers", "network.max_workers", "network.max_failures", "network.checkpoint_every"),
        *("out", "memory_bytes", "loggers", "logs", "rebuild", "wait", "lease_seconds", "dry_run", "local", "stores"),
    }
    assert completed(document, TrainConfig) == document
