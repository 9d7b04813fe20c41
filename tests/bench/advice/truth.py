"""The truth of a task: every strategy carried out as a user would, and measured on images that nobody saw.

What was measured is kept in a file of the task's folder after each strategy, so that it can be made in pieces.
"""

import csv
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.advice.tasks import write_task
from tlray.advice.inputs.candidates import Candidate
from tlray.advice.inputs.sample import folds
from tlray.advice.measuring.probes import neighbour_probe
from tlray.advice.measuring.trials import BATCH_SIZE, Attempt, Kind, recipe_of
from tlray.config import ExtractConfig, TrainConfig
from tlray.extraction.extract import extract
from tlray.lake.storage.uri import to_uri
from tlray.lake.table.table import Table
from tlray.scoring import logme
from tlray.training.examples.table_vectors import length_of, read_rows, read_vectors
from tlray.training.model.model import read_card
from tlray.training.train import train

VALIDATION = 0.15

Key = tuple[str, str, str]
"""A strategy: kind, candidate as `without_folder` names it, and layer."""


def without_folder(candidate: str) -> str:
    """The name of a candidate without the folder of its file, so that a truth holds wherever its cache lies."""
    start, colon, file = candidate.partition("onnx:")
    return f"{start}{colon}{file.rpartition('/')[2]}" if colon else candidate


@dataclass(frozen=True)
class Task:
    """A task with its images in a folder that stays.

    Attributes:
        name: of `tests.bench.advice.tasks.TASKS`.
        folder: with `pool`, `test`, and what is known of them.
        pool: images that advice may see.
        test: images that the truth is measured on.
        epochs: of each network that is trained.
    """

    name: str
    folder: Path
    pool: int
    test: int
    epochs: int

    @classmethod
    def written(cls, name: str, cache: Path, packages: Path, pool: int, test: int, epochs: int) -> "Task":
        """Write the images of a task, unless they are there."""
        folder = cache / f"{name}-{pool}-{test}-{epochs}"
        counts = folder / "counts.json"
        if not counts.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            counts.write_text(json.dumps(write_task(name, folder, packages, pool, test)))
            _write_labels(folder)
        sizes = json.loads(counts.read_text())
        return cls(name, folder, sizes["pool"], sizes["test"], epochs)

    @property
    def source(self) -> dict[str, Any]:
        """All of its images."""
        return {"uri": str(self.folder), "include": ("**/*.png",)}

    @property
    def shared(self) -> dict[str, Any]:
        """What of a training is the same for all strategies."""
        return {"labels": str(self.folder / "labels.csv"), "split": {"column": "split"}, "skip": ("unlabelled",)}

    @property
    def own_share(self) -> float:
        """Share of a network's training that is not spent on the test images; a forward pass counts as a third of a step."""
        validation = VALIDATION * self.pool
        passes = self.epochs * (3 * (self.pool - validation) + validation) + self.pool
        return passes / (passes + self.test)


@dataclass
class Truth:
    """What is known of a task.

    Attributes:
        path: of the file that has it.
        strategies: accuracy on the test images and seconds of the processor, by strategy.
        scores: LogME and 20-NN accuracy (cross-validated) of the pool by candidate and layer.
        curves: validation accuracies of each network, epoch by epoch.
    """

    path: Path
    strategies: dict[Key, tuple[float, float]]
    scores: dict[tuple[str, str], tuple[float, float]]
    curves: dict[Key, tuple[float, ...]]

    @classmethod
    def of(cls, task: Task) -> "Truth":
        """What was measured so far."""
        path = task.folder / "truth.json"
        kept = json.loads(path.read_text()) if path.exists() else {"strategies": [], "scores": [], "curves": []}
        strategies, curves = ({tuple(one[:3]): tuple(one[3:]) for one in kept[name]} for name in ("strategies", "curves"))
        return cls(path, strategies, {tuple(one[:2]): tuple(one[2:]) for one in kept["scores"]}, curves)

    def save(self) -> None:
        """Write it down, whole or not at all."""
        tables: dict[str, dict] = {"strategies": self.strategies, "scores": self.scores, "curves": self.curves}
        document = {name: [[*key, *values] for key, values in table.items()] for name, table in tables.items()}
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(document, indent=1))
        new.rename(self.path)


def strategies_of(one: Candidate, *, heads_only: bool) -> list[Key]:
    """All strategies with a network: a head on each layer, and, of those that can be trained, what advice may try."""
    name = without_folder(one.name)
    found = [("head", name, tap) for tap in one.taps]
    if heads_only or one.anatomy is None:
        return found
    if one.is_pretrained:
        found += [("freeze", name, one.taps[0]), ("fine-tune", name, one.tap)]
    return [*found, ("scratch", name, one.tap)]


def carry_out(task: Task, truth: Truth, candidates: Sequence[Candidate], *, heads_only: bool) -> Iterator[Key]:
    """Carry out all strategies that the truth has not got yet; each is kept, and told, when it is done."""
    for one in candidates:
        missing = [key for key in strategies_of(one, heads_only=heads_only) if key not in truth.strategies]
        heads = [key for key in missing if key[0] == "head"]
        if heads:
            _heads(task, truth, one)
            truth.save()
            yield from heads
        for key in missing:
            if key[0] != "head":
                truth.strategies[key], truth.curves[key] = _network(task, one, key)
                truth.save()
                yield key


def _heads(task: Task, truth: Truth, one: Candidate) -> None:
    """A table of all layers, and a head on each; the first one's seconds include those of the pool's embedding."""
    table, out = task.folder / "table", task.folder / "model"
    for left in (table, out):
        shutil.rmtree(left, ignore_errors=True)
    began = time.process_time()
    recipe = one.config.model_copy(update={"taps": one.taps}).model_dump()
    extract(ExtractConfig.model_validate({"source": task.source, "recipe": recipe, "table": str(table), "local": True}))
    seconds = (time.process_time() - began) * task.pool / (task.pool + task.test)
    columns = Table.open(to_uri(str(table))).recipe_file.recipe.columns
    for tap in one.taps:
        given = {"table": str(table), "out": str(out), "grid": {"columns": (columns[tap],)}, "refit": True, **task.shared}
        accuracy, own = _measured(given)
        truth.strategies["head", without_folder(one.name), tap] = (accuracy, own + seconds)
        truth.scores[without_folder(one.name), tap] = _scores(table, columns[tap])
        seconds = 0.0
        shutil.rmtree(out)
    shutil.rmtree(table)


def _network(task: Task, one: Candidate, key: Key) -> tuple[tuple[float, float], tuple[float, ...]]:
    kind: Kind = key[0]  # type: ignore[assignment]  # all but heads
    attempt = Attempt(kind, one, key[2] if kind == "freeze" else None)
    out = task.folder / "model"
    shutil.rmtree(out, ignore_errors=True)
    given = {
        "source": task.source,
        "recipe": recipe_of(attempt, 0).model_dump(),
        "network": attempt.network.model_dump(),
        "out": str(out),
        "epochs": task.epochs,
        "patience": task.epochs,
        "batch_size": BATCH_SIZE,
        "local": True,
        **task.shared,
    }
    accuracy, seconds = _measured(given)
    history = read_card(to_uri(str(out))).training["history"]
    shutil.rmtree(out)
    return (accuracy, seconds * task.own_share), tuple(epoch["accuracy"] for epoch in history)


def _measured(given: dict[str, Any]) -> tuple[float, float]:
    began = time.process_time()
    result = train(TrainConfig.model_validate(given))
    return result["metrics"]["test"]["accuracy"]["value"], time.process_time() - began


def _scores(uri: Path, column: str) -> tuple[float, float]:
    """LogME and the accuracy of 20 neighbours' votes on the pool, which need no training."""
    rows = read_rows(Table.open(to_uri(str(uri))))
    names = [one.split("/")[-3:-1] for one in rows.uris.to_pylist()]
    pool = np.array([at for at, (side, _) in enumerate(names) if side == "pool"])
    features_ND = np.empty((len(pool), length_of(rows, column)), np.float32)
    read_vectors(rows, column, pool, features_ND)
    _, targets_N = np.unique([names[at][1] for at in pool], return_inverse=True)
    folds_N = folds(targets_N, np.arange(len(pool)), 0)
    return logme(features_ND, targets_N), neighbour_probe(features_ND, targets_N, folds_N).accuracy.value


def _write_labels(folder: Path) -> None:
    """A labels file of a task: the pool is trained on and chosen by, the rest is measured on."""
    generator = np.random.default_rng(0)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "label", "split"])
        for side in ("pool", "test"):
            for images in sorted(folder.glob(f"{side}/*")):
                paths = sorted(images.iterdir())
                held = set(generator.permutation(len(paths))[: max(1, round(VALIDATION * len(paths)))].tolist())
                for at, image in enumerate(paths):
                    split = "test" if side == "test" else "validation" if at in held else "train"
                    writer.writerow([str(image.relative_to(folder)), images.name, split])
