"""Partly frozen networks: what caching activations gains, and the classic comparison of ways to transfer.

scikit-learn's digits, EfficientNet-Lite0 with its ImageNet weights, images of 96 pixels. All in this process, without Ray.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

from tests.bench.harness import BACKBONE, WEIGHTS, finish, ratio
from tlray.config import ExtractConfig, TrainConfig
from tlray.demo.images import LEVELS, write_digits
from tlray.extraction.extract import extract
from tlray.lake.storage.local_copy import local_copy
from tlray.lake.storage.uri import to_uri
from tlray.models.backbones.images import resolve_backbone
from tlray.models.encoder.memory import keep_freed_memory
from tlray.models.layers.heads import Head, HeadSpec
from tlray.training.model.model import load_model
from tlray.training.network.learner.transfer_network import TransferNetwork
from tlray.training.network.worker import anatomy_of, suffix_of
from tlray.training.train import train

SIDE_PIXELS = 96
CUT = "blocks.4"
RECIPE = {
    "backbone": BACKBONE,
    "weights": WEIGHTS,
    "precision": {"compute": "fp32", "storage": "full"},
    "preprocessing": {"resize": SIDE_PIXELS, "crop": SIDE_PIXELS},
}
LABELS_A_CLASS = 20
EPOCHS = 20
COMPARISON_BATCH = 20
EPOCH_BATCH = 32
EPOCH_ROWS_A_CLASS = 26

STRATEGIES: dict[str, dict[str, Any]] = {
    "frozen features + linear head": {"freeze": "all", "learning_rate": 0.01},
    f"freeze up to {CUT}": {"freeze": CUT, "learning_rate": 0.003, "backbone_rate": 0.3},
    "fine-tune all": {"freeze": "none", "learning_rate": 0.003, "backbone_rate": 0.3},
    "from scratch": {"freeze": "none", "start": "scratch", "learning_rate": 0.003},
}


def write_labels(path: Path, folder: Path, train_a_class: int, *, test: bool) -> None:
    """A labels file: the first of each class are for training, as many again for validation, the others (or none) for test."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "label", "split"])
        for label in range(10):
            for number, image in enumerate(sorted((folder / str(label)).iterdir())):
                split = "train" if number < train_a_class else "validation" if number < 2 * train_a_class else "test"
                if split != "test" or test:
                    writer.writerow([str(image), label, split])


def training(folder: Path, labels: Path, out: Path, network: dict[str, Any], **changes: Any) -> TrainConfig:
    """A training in this process, without augmentation."""
    fields = {
        "source": {"uri": str(folder)},
        "recipe": RECIPE,
        "labels": str(labels),
        "split": {"column": "split"},
        "skip": ["unlabelled"],
        "out": str(out),
        "epochs": EPOCHS,
        "patience": EPOCHS,
        "batch_size": COMPARISON_BATCH,
        "local": True,
        "network": {"augment": []} | network,
    }
    return TrainConfig.model_validate(fields | changes)


def compare(scratch: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Test accuracy and seconds of each strategy, after equal epochs on equal images."""
    labels = scratch / "few.csv"
    write_labels(labels, folder, LABELS_A_CLASS, test=True)
    found = {}
    for name, network in STRATEGIES.items():
        out = scratch / name.replace(" ", "-")
        train(training(folder, labels, out, network))
        card = load_model(to_uri(str(out))).card
        accuracy = card.metrics["test"].accuracy
        assert accuracy is not None
        seconds = sum(epoch["seconds"] for epoch in card.training["history"])
        found[name] = {"accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high, "seconds": seconds}
        print(f"{name}: {found[name]}", flush=True)
    found["MLP on raw pixels"] = raw_pixels()
    return found


def raw_pixels() -> dict[str, float]:
    """An MLP of 256 hidden units on the data set's own 8 x 8 pixels, by the same optimiser in as many steps."""
    digits = load_digits()
    pixels, targets = torch.from_numpy(digits.data / LEVELS).float(), torch.from_numpy(digits.target)
    order = np.concatenate([np.flatnonzero(digits.target == label)[:LABELS_A_CLASS] for label in range(10)])
    chosen = [np.flatnonzero(digits.target == label) for label in range(10)]
    held_out = np.concatenate([numbers[2 * LABELS_A_CLASS :] for numbers in chosen])
    torch.manual_seed(0)
    head = Head.of(HeadSpec(kind="mlp", inputs=64, outputs=10, hidden=(256,)))
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.003)
    began = time.perf_counter()
    for epoch in range(EPOCHS):
        for batch in np.array_split(np.random.default_rng((0, epoch)).permutation(order), len(order) // COMPARISON_BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(head(pixels[batch]), targets[batch]).backward()
            optimizer.step()
    seconds = time.perf_counter() - began
    with torch.no_grad():
        accuracy = float((head(pixels[held_out]).argmax(1) == targets[held_out]).float().mean())
    low, high = wilson(accuracy, len(held_out))
    return {"accuracy": accuracy, "low": low, "high": high, "seconds": seconds}


def wilson(share: float, rows: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    middle, reach = share + z * z / (2 * rows), z * (share * (1 - share) / rows + z * z / (4 * rows * rows)) ** 0.5
    return (middle - reach) / (1 + z * z / rows), (middle + reach) / (1 + z * z / rows)


def time_epochs(scratch: Path, folder: Path) -> dict[str, float]:
    """Epochs from images (decoded before) and from cached activations, and the time of their passes alone."""
    labels, table = scratch / "many.csv", scratch / "table"
    write_labels(labels, folder, EPOCH_ROWS_A_CLASS, test=False)
    recipe = RECIPE | {"taps": [CUT], "pool": "none"}
    extract(
        ExtractConfig.model_validate({"source": {"uri": str(folder)}, "recipe": recipe, "table": str(table), "local": True})
    )
    seconds = {}
    changes = {"epochs": 4, "batch_size": EPOCH_BATCH}
    for name, more in (("images", {}), ("activations", {"source": None, "table": str(table)})):
        train(training(folder, labels, scratch / name, {"freeze": CUT}, **changes, **more))
        history = load_model(to_uri(str(scratch / name))).card.training["history"]
        seconds[name] = median(epoch["seconds"] for epoch in history[1:])
    passes = time_passes()
    return {
        "epoch_from_images_seconds": seconds["images"],
        "epoch_from_activations_seconds": seconds["activations"],
        "full_pass_seconds": passes["full"],
        "suffix_pass_seconds": passes["suffix"],
        "epoch_speedup": ratio(seconds["images"], seconds["activations"]),
        "pass_speedup": ratio(passes["full"], passes["suffix"]),
        "share_of_pass_speedup": ratio(
            ratio(seconds["images"], seconds["activations"]), ratio(passes["full"], passes["suffix"])
        ),
    }


def time_passes() -> dict[str, float]:
    """One forward and backward pass of a batch through the partly frozen network, and through its suffix alone."""
    backbone = resolve_backbone(TrainConfig.model_validate({"out": "x", "recipe": RECIPE}).recipe, local_copy)
    anatomy, suffix = anatomy_of(backbone), suffix_of(backbone, CUT)
    head = Head.of(HeadSpec(kind="linear", inputs=backbone.shapes["embedding"][0], outputs=10))
    images = torch.randint(0, 256, (EPOCH_BATCH, SIDE_PIXELS, SIDE_PIXELS, 3), dtype=torch.uint8)
    full = TransferNetwork(backbone, anatomy, CUT, head).train()
    shapes: list[tuple[int, ...]] = []
    handle = backbone.module.get_submodule(CUT).register_forward_hook(lambda _m, _i, output: shapes.append(tuple(output.shape)))
    full(images)
    handle.remove()
    part = TransferNetwork(backbone, anatomy, CUT, head, suffix=suffix, shape=shapes[0][1:]).train()
    activations = torch.randn(EPOCH_BATCH, int(np.prod(shapes[0][1:])))
    return {"full": _median_seconds(lambda: full(images)), "suffix": _median_seconds(lambda: part(activations))}


def _median_seconds(forward: Callable[[], torch.Tensor], repetitions: int = 9) -> float:
    seconds = []
    for _ in range(repetitions):
        began = time.perf_counter()
        forward().square().mean().backward()
        seconds.append(time.perf_counter() - began)
    return median(seconds)


def main() -> None:
    keep_freed_memory()  # as the command does
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["epochs", "comparison", "all"], nargs="?", default="all")
    part = parser.parse_args().part
    found: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tlray-bench-") as name:
        scratch, folder = Path(name), Path(name) / "digits"
        write_digits(folder)
        if part != "comparison":
            found |= time_epochs(scratch, folder)
            rows = [{"measured": name, "value": value} for name, value in found.items()]
        if part != "epochs":
            found["comparison"] = compare(scratch, folder)
            rows = [{"way": way, **row} for way, row in found["comparison"].items()]
    finish(found, rows)


if __name__ == "__main__":
    main()
