"""Regret of advice: the points of accuracy that are lost by following it, against trying everything.

For each task (`tests.bench.advice.tasks`), advice sees the pool alone. The truth is each strategy carried out by `tlray
extract` and `tlray train` on the pool, and measured on test images that nobody saw (`tests.bench.advice.truth`): heads on two
layers of each network, and of each pretrained one freezing up to the earlier layer, fine-tuning all, and from scratch. Beside
it the same for baselines: the largest pretrained network, the highest LogME, the highest 20-NN accuracy (each with a head on
its features), always fine-tuning all of the largest one, and a random choice (the mean of all).

Seconds are of the processor in one process with one thread for each of torch's operations, advice and truth alike. The truth is
kept in `--cache`, strategy by strategy: with `--minutes` a run ends early, and the next one goes on.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from tests.bench.advice.networks import candidates as named_candidates
from tests.bench.advice.tasks import SIDE_PIXELS, TASKS
from tests.bench.advice.truth import Key, Task, Truth, carry_out, strategies_of, without_folder
from tests.bench.harness import finish, ratio
from tlray.advice.advise import advise
from tlray.advice.inputs.candidates import Candidate, find_candidates
from tlray.config import AdviseConfig
from tlray.models.encoder.memory import keep_freed_memory
from tlray.training.examples.metrics import Z95

LAYERS = 2
PACKAGES = Path.home() / ".cache" / "tlray-bench"


def config_of(task: Task, candidates: Sequence[str], **changes: Any) -> AdviseConfig:
    """What advice is asked for a task: of the pool, with the sides that the truth is trained by."""
    fields = {
        **task.shared,
        "source": {"uri": str(task.folder / "pool")},
        "skip": ("missing",),
        "candidates": tuple(candidates),
        "layers": LAYERS,
        "minutes": 600,
        "epochs": task.epochs,
        "preprocessing": {"resize": SIDE_PIXELS, "crop": SIDE_PIXELS},
    }
    return AdviseConfig.model_validate(fields | changes)


def choices(best: dict[str, Any] | None, truth: Truth, candidates: Sequence[Candidate]) -> dict[str, Key | None]:
    """What advice and each baseline choose; None for a random choice."""
    largest = max((one for one in candidates if one.is_pretrained), key=lambda one: one.parameters)
    scores = {key: truth.scores[key] for key in truth.scores if key[0] in {without_folder(one.name) for one in candidates}}
    by_logme, by_neighbours = (max(scores, key=lambda key, at=at: scores[key][at]) for at in (0, 1))
    return {
        "advice": None if best is None else (best["strategy"], without_folder(best["candidate"]), best["layer"]),
        "20-NN alone": ("head", *by_neighbours),
        "LogME alone": ("head", *by_logme),
        "largest network": ("head", without_folder(largest.name), largest.tap),
        "fine-tune all": ("fine-tune", without_folder(largest.name), largest.tap),
        "random": None,
    }


def regrets(truth: dict[Key, float], chosen: dict[str, Key | None]) -> dict[str, float]:
    """Points of accuracy that each choice loses; no recommendation, and a random choice, lose what the mean does."""
    best, mean = max(truth.values()), float(np.mean(list(truth.values())))
    return {name: 100 * (best - (mean if one is None else truth[one])) for name, one in chosen.items()}


def interval_holds(expected: dict[str, float], accuracy: float, rows: int) -> dict[str, bool]:
    """Whether what came of it is in the promised interval, and whether it is within that and its own error of measurement."""
    side = expected["high"] if accuracy > expected["value"] else expected["low"]
    own = Z95 * math.sqrt(accuracy * (1 - accuracy) / rows)
    within = math.hypot(side - expected["value"], own)
    return {
        "in_interval": expected["low"] <= accuracy <= expected["high"],
        "in_interval_and_error": abs(accuracy - expected["value"]) <= within,
    }


def run_advice(task: Task, names: Sequence[str], *, heads_only: bool) -> dict[str, Any]:
    """Ask for advice on a task; with seconds of the processor."""
    began = time.process_time()
    advice = advise(config_of(task, names, trials=not heads_only))
    return advice | {"processor_seconds": time.process_time() - began}


def compare(task: Task, advice: dict[str, Any], truth: Truth, candidates: Sequence[Candidate], *, heads_only: bool) -> dict:
    """Advice beside the truth of a task."""
    keys = [key for one in candidates for key in strategies_of(one, heads_only=heads_only)]
    accuracies = {key: truth.strategies[key][0] for key in keys}
    best = advice["recommendation"]
    chosen = choices(best, truth, candidates)
    if heads_only:
        del chosen["fine-tune all"]
    found = max(accuracies, key=lambda key: accuracies[key])
    seconds, exhaustive = advice["processor_seconds"], sum(truth.strategies[key][1] for key in keys)
    came = accuracies[chosen["advice"]] if chosen["advice"] else None
    return {
        "task": task.name,
        "images": [task.pool, task.test],
        "strategies": len(keys),
        "likeness": advice["likeness"]["value"],
        "verdict": advice["verdict"],
        "best": [*found, accuracies[found]],
        "chosen": {name: None if key is None else [*key, accuracies[key]] for name, key in chosen.items()},
        "expected": best["expected_accuracy"] if best else None,
        "came": came,
        **(interval_holds(best["expected_accuracy"], came, task.test) if best and came is not None else {}),
        "regret": {name: round(points, 2) for name, points in regrets(accuracies, chosen).items()},
        "regret_error": round(100 * math.sqrt(2 * accuracies[found] * (1 - accuracies[found]) / task.test), 2),
        "advice_seconds": round(seconds, 1),
        "exhaustive_seconds": round(exhaustive, 1),
        "share_of_time": ratio(seconds, exhaustive),
    }


def interval_of(points: Sequence[float]) -> list[float]:
    """95 % interval of a mean over tasks, by a bootstrap of tasks; few tasks, so a rough one."""
    drawn = np.random.default_rng(0).choice(np.array(points), size=(10_000, len(points))).mean(axis=1)
    return np.quantile(drawn, [0.025, 0.975]).round(2).tolist()


def summary(found: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Of all tasks together: the result, and the rows of the table."""
    names = list(found[0]["regret"])
    mean = {name: round(float(np.mean([one["regret"][name] for one in found])), 2) for name in names}
    worst = {name: max(one["regret"][name] for one in found) for name in names}
    seconds, exhaustive = (sum(one[key] for one in found) for key in ("advice_seconds", "exhaustive_seconds"))
    held = {name: sum(one.get(name, False) for one in found) for name in ("in_interval", "in_interval_and_error")}
    points = {name: [one["regret"][name] for one in found] for name in names}
    intervals = {name: interval_of(points[name]) for name in names}
    more = {name: interval_of(np.subtract(points[name], points["advice"])) for name in names if name != "advice"}
    result = {
        "tasks": found,
        "mean_regret": mean,
        "interval": intervals,
        "more_than_advice": more,
        "worst_regret": worst,
        "share_of_time": ratio(seconds, exhaustive),
        **held,
    }
    return result, [
        {"chosen by": name, "mean regret": mean[name], "95 %": intervals[name], "worst regret": worst[name]} for name in names
    ]


def main() -> None:
    arguments = _arguments()
    keep_freed_memory()
    torch.set_num_threads(1)
    threadpool_limits(1)
    ends = time.monotonic() + 60 * arguments.minutes
    names = arguments.candidates or named_candidates(arguments.cache)
    found, missing = list[dict[str, Any]](), 0
    for name in arguments.tasks:
        task = Task.written(name, arguments.cache, arguments.packages, arguments.pool, arguments.test, arguments.epochs)
        truth = Truth.of(task)
        networks, _ = find_candidates(config_of(task, names))
        advice = None if arguments.truth_only else run_advice(task, names, heads_only=arguments.heads)
        if advice is not None:
            (task.folder / "advice.json").write_text(json.dumps(advice, indent=1))
        for key in carry_out(task, truth, networks, heads_only=arguments.heads):
            print(f"{name}: {' '.join(key)}: {truth.strategies[key]}", flush=True)
            if time.monotonic() > ends:
                break
        keys = [key for one in networks for key in strategies_of(one, heads_only=arguments.heads)]
        missing = sum(key not in truth.strategies for key in keys)
        if missing:
            print(f"{name}: {missing} strategies are missing; run it again", flush=True)
            break
        if advice is not None:
            found.append(compare(task, advice, truth, networks, heads_only=arguments.heads))
            print(json.dumps(found[-1]), flush=True)
    if found and not missing:
        finish(*summary(found))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--pool", type=int, default=240, help="images that advice sees")
    parser.add_argument("--test", type=int, default=600, help="images that the truth is measured on")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--cache", type=Path, default=PACKAGES / "advise", help="folder of the tasks and their truth")
    parser.add_argument("--packages", type=Path, default=PACKAGES)
    parser.add_argument("--candidates", nargs="+")
    parser.add_argument("--minutes", type=float, default=1e6, help="end after the strategy that is under way then")
    parser.add_argument("--truth-only", action="store_true", help="carry out what the cache has not got yet, without advice")
    parser.add_argument("--heads", action="store_true", help="truth and advice of heads alone: minutes, not hours")
    parser.add_argument("--quick", action="store_true", help="one small task, a few steps: only shows that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.tasks, arguments.pool, arguments.test, arguments.epochs = ["digits"], 100, 100, 1
    return arguments


if __name__ == "__main__":
    main()
