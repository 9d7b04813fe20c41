"""Heads on a table: the best of a grid of 64 against scikit-learn, and the grid's time against that of one head.

Ours is `tlray train` from the table to the model folder, refit included; scikit-learn's is `LogisticRegressionCV` with the
vectors in memory already. Both learn from the same rows (ours: training and validation) and are measured on the same test
rows, turn by turn, over several splits. scikit-learn's is fitted three times:

- `documented`: as its documents have it, `LogisticRegressionCV(cv=5)` on vectors as they are;
- `standardised`: behind a `StandardScaler`, with iterations enough to converge;
- `scaled`: likewise, but all vectors divided by one number, so that channels keep their variances.

`fair` is the better one of the last two by its own cross-validation, and what counts (`points`); its time is that of both.
`points_to_better` is against the one of the two that was better on the test rows, in the mean of all splits.
The digits are scikit-learn's 1,797, as EfficientNet-Lite0 with its ImageNet weights sees them (`lite0`), as a ResNet-18 with
random weights does (`random`), and as their 64 pixels. The grid's time is that of training alone, and of the whole command
without the start of Python; `--rows` adds training alone on made-up vectors of other sizes.
"""

import argparse
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine, make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.bench.harness import BACKBONE, WEIGHTS, finish, print_table, ratio
from tests.training.tables import write_table
from tlray.config import ExtractConfig, TrainConfig
from tlray.demo.images import write_digits
from tlray.extraction.extract import extract
from tlray.lake.table.parts import vectors_of
from tlray.lake.table.table import Table
from tlray.models.encoder.memory import keep_freed_memory
from tlray.training.examples.examples import Examples, Split
from tlray.training.examples.splits import hash_splits
from tlray.training.examples.table_vectors import LoadedVectors
from tlray.training.heads.grid import train_trials
from tlray.training.heads.objective import product
from tlray.training.heads.trials import Data, Schedule, Solver, Trial
from tlray.training.train import train

NETWORKS: dict[str, dict[str, Any]] = {
    "lite0": {"backbone": BACKBONE, "weights": WEIGHTS},
    "random": {"backbone": "torchvision:resnet18", "weights": "random:0", "preprocessing": {"resize": 96, "crop": 96}},
}
VECTORS: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "pixels": partial(load_digits, return_X_y=True),
    "wine": partial(load_wine, return_X_y=True),
    "cancer": partial(load_breast_cancer, return_X_y=True),
    "iris": partial(load_iris, return_X_y=True),
    "made": lambda: make_classification(
        2000, 200, n_informative=30, n_redundant=60, n_classes=5, class_sep=1.5, random_state=0
    ),
}
ITERATIONS = 20_000
HEADS = 64
ONE = 1e-2
DECAYS = tuple(float(value) for value in np.geomspace(1e-6, 10, HEADS))
RATES = tuple(float(value) for value in np.geomspace(1e-4, 1e-1, 8))
ONE_RATE = 1e-3
ADAMW_EPOCHS = 20


def digits_table(folder: Path, name: str) -> str:
    """Table of the digits by one of `NETWORKS`."""
    if not (folder / "digits").exists():
        write_digits(folder / "digits")
    source = {"uri": str(folder / "digits"), "labels": "folder"}
    job = {"source": source, "recipe": NETWORKS[name], "table": str(folder / name), "local": True}
    extract(ExtractConfig.model_validate(job))
    return str(folder / name)


def table_of(folder: Path, name: str) -> str:
    """One of `NETWORKS`' tables or, of `VECTORS`, one that is written directly."""
    if name in NETWORKS:
        return digits_table(folder, name)
    features_ND, classes_N = VECTORS[name]()
    write_table(folder / name, {"embedding": np.asarray(features_ND, np.float32)}, classes_N.tolist())
    return str(folder / name)


def ours(table: str, out: Path, seed: int, **changes: object) -> tuple[dict[str, Any], float]:
    settings = {"table": table, "out": str(out), "seed": seed, "rebuild": True} | changes
    config = TrainConfig.model_validate(settings)
    began = time.perf_counter()
    result = train(config)
    return result, time.perf_counter() - began


def read(table: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """URIs, vectors and class numbers, by URI."""
    rows = Table.open(f"file://{table}").read(["uri", "label", "embedding"]).sort_by("uri")
    classes_N = np.unique(np.array(rows["label"].to_pylist()), return_inverse=True)[1]
    return rows["uri"].to_pylist(), vectors_of(rows["embedding"]), classes_N


def scikit_learn(table: str, seed: int) -> dict[str, float]:
    """Test accuracy of each way, seconds of the fair one, and how many fits of it did not converge."""
    uris, features_ND, classes_N = read(table)
    splits_N = hash_splits(uris, classes_N, TrainConfig(out="x").split, seed)
    known, test = splits_N != Split.TEST, splits_N == Split.TEST
    centred_ND = features_ND - features_ND[known].mean(axis=0)
    ways: dict[str, tuple[np.ndarray, Pipeline]] = {
        "documented": (features_ND, make_pipeline(LogisticRegressionCV(cv=5))),
        "standardised": (features_ND, make_pipeline(StandardScaler(), LogisticRegressionCV(cv=5, max_iter=ITERATIONS))),
        "scaled": (
            centred_ND / centred_ND[known].std(),
            make_pipeline(LogisticRegressionCV(cv=5, max_iter=ITERATIONS)),
        ),
    }
    found: dict[str, float] = {}
    own: dict[str, float] = {}
    began = time.perf_counter()
    for name, (inputs_ND, way) in ways.items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            way.fit(inputs_ND[known], classes_N[known])
        found[name] = float(way.score(inputs_ND[test], classes_N[test]))
        if name == "documented":
            began = time.perf_counter()
            continue
        found["unconverged"] = found.get("unconverged", 0) + sum(issubclass(one.category, ConvergenceWarning) for one in said)
        # Largest over the strengths of the mean over the folds, as it chooses itself.
        own[name] = float(np.mean(next(iter(way[-1].scores_.values())), axis=0).max())
    return found | {"seconds": time.perf_counter() - began, "fair": found[max(own, key=own.__getitem__)]}


def against_scikit_learn(name: str, table: str, folder: Path, seeds: range) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A summary, and one row a split."""
    rows = []
    for seed in seeds:
        result, seconds = ours(table, folder / "best", seed, grid={"weight_decays": DECAYS}, refit=True)
        accuracy, theirs = result["metrics"]["test"]["accuracy"]["value"], scikit_learn(table, seed)
        points = {f"points_{way}": 100 * (accuracy - theirs[way]) for way in ("documented", "standardised", "scaled", "fair")}
        rows.append({"set": name, "split": seed, "ours": accuracy, **theirs, **points, "ours_seconds": seconds})
        print(rows[-1], flush=True)
    fair = np.array([row["points_fair"] for row in rows])
    summary = {
        "set": name,
        "splits": len(rows),
        "test_rows": result["metrics"]["test"]["rows"],
        "ours": 100 * float(np.mean([row["ours"] for row in rows])),
        **{way: 100 * float(np.mean([row[way] for row in rows])) for way in ("documented", "standardised", "scaled", "fair")},
        "points": float(fair.mean()),
        "points_to_better": 100
        * float(min(np.mean([row["ours"] - row[way] for row in rows]) for way in ("standardised", "scaled"))),
        "error": float(fair.std(ddof=1) / len(fair) ** 0.5) if len(fair) > 1 else None,
        "worst": float(fair.min()),
        "unconverged": sum(row["unconverged"] for row in rows),
        "time_ratio": ratio(median(row["ours_seconds"] for row in rows), median(row["seconds"] for row in rows)),
    }
    return summary, rows


def grid_against_one(table: str, folder: Path, repetitions: int) -> dict[str, float]:
    """Median seconds of the whole command for one head and for 64, turn by turn, in a process that is warm already."""
    times: dict[str, list[float]] = {"one": [], "grid": [], "one adamw": [], "grid adamw": []}
    by_adamw = {"epochs": ADAMW_EPOCHS, "patience": ADAMW_EPOCHS}
    kinds: dict[str, dict[str, Any]] = {
        "one": {"grid": {"weight_decays": [ONE]}},
        "grid": {"grid": {"weight_decays": DECAYS}},
        "one adamw": {"grid": {"weight_decays": [ONE], "learning_rates": [ONE_RATE]}} | by_adamw,
        "grid adamw": {"grid": {"weight_decays": DECAYS[::8], "learning_rates": RATES}} | by_adamw,
    }
    for _ in range(repetitions):
        for name, changes in kinds.items():
            times[name].append(ours(table, folder / "model", 0, **changes)[1])
    return {name: median(values) for name, values in times.items()}


def heads_by(solver: Solver) -> dict[str, list[Trial]]:
    """One head, and 64."""
    if solver == "adamw":
        grid = [Trial("embedding", "adamw", decay, rate) for rate in RATES for decay in DECAYS[::8]]
        return {"one": [Trial("embedding", "adamw", ONE, ONE_RATE)], "grid": grid}
    return {"one": [Trial("embedding", solver, ONE)], "grid": [Trial("embedding", solver, decay) for decay in DECAYS]}


def training_alone(features_ND: np.ndarray, classes_N: np.ndarray, solver: Solver, repetitions: int) -> dict[str, float]:
    """Median seconds from vectors in memory to trained heads, standardising and the basis included."""
    uris = [f"s3://x/{at}" for at in range(len(classes_N))]
    splits_N = hash_splits(uris, classes_N, TrainConfig(out="x").split, 0)
    names = tuple(str(name) for name in range(int(classes_N.max()) + 1))
    examples = Examples(pa.array(uris), classes_N, splits_N, "single", names, np.arange(len(uris)))
    config = TrainConfig(out="x")
    schedule = Schedule(ADAMW_EPOCHS, ADAMW_EPOCHS) if solver == "adamw" else Schedule(config.epochs, config.patience)
    times: dict[str, list[float]] = {"one": [], "grid": []}
    for repetition in range(repetitions + 1):
        for name, trials in heads_by(solver).items():
            data = Data(LoadedVectors(features_ND), examples, torch.ones(len(uris)))
            began = time.perf_counter()
            train_trials(data, trials, schedule, config.head, 8 * 2**30, lambda _epoch, _metrics: None)
            if repetition:
                times[name].append(time.perf_counter() - began)
    return {name: median(values) for name, values in times.items()}


def made_up(rows: int, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten overlapping classes in a space whose variances fall off as those of networks do."""
    rng = np.random.default_rng(0)
    classes_N = rng.integers(10, size=rows)
    scales_D = np.arange(1, dimensions + 1) ** -0.5
    centres_KD = rng.standard_normal((10, dimensions))
    mixing_DD = np.linalg.qr(rng.standard_normal((dimensions, dimensions)))[0]
    inner_ND = (0.5 * centres_KD[classes_N] + rng.standard_normal((rows, dimensions))) * scales_D
    return np.maximum(inner_ND @ mixing_DD + 0.1, 0).astype(np.float32), classes_N


def floor(rows: int, components: int, repetitions: int) -> dict[str, float]:
    """Median seconds of an iteration's two bare products, for one head and for 64, of ten classes."""
    rows_NR = torch.randn(rows, components)
    times: dict[str, list[float]] = {"one": [], "grid": []}
    for _ in range(5 * repetitions):
        for name, heads in (("one", 1), ("grid", HEADS)):
            weights, residuals = torch.randn(10 * heads, components), torch.randn(10 * heads, rows)
            began = time.perf_counter()
            product(weights, rows_NR), product(residuals, rows_NR.T)
            times[name].append(time.perf_counter() - began)
    return {name: median(values) for name, values in times.items()}


def grids(table: str, folder: Path, repetitions: int, sizes: list[int]) -> list[dict[str, Any]]:
    """Seconds of one head and of 64, by what is measured."""
    times = grid_against_one(table, folder, repetitions)
    _, features_ND, classes_N = read(table)
    measured = {
        "command, cg": {"one": times["one"], "grid": times["grid"]},
        "command, adamw": {"one": times["one adamw"], "grid": times["grid adamw"]},
        "training alone, cg": training_alone(features_ND, classes_N, "cg", repetitions),
        "training alone, adamw": training_alone(features_ND, classes_N, "adamw", repetitions),
        "bare products": floor(1259, 850, repetitions),
    }
    measured |= {f"training alone, {count} x 512": training_alone(*made_up(count, 512), "cg", 1) for count in sizes}
    return [{"grid of 64": name, **found, "ratio": ratio(found["grid"], found["one"])} for name, found in measured.items()]


def main() -> None:
    keep_freed_memory()  # as the command does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="once each")
    parser.add_argument("--sets", nargs="*", default=["lite0"], choices=[*NETWORKS, *VECTORS], help="against scikit-learn")
    parser.add_argument("--splits", type=int, default=2, help="of each set")
    parser.add_argument("--first-split", type=int, default=0)
    parser.add_argument("--repetitions", type=int, default=3, help="of the grid's times; 0 leaves them out")
    parser.add_argument("--table", help="a table of the digits by EfficientNet-Lite0 that is there already")
    parser.add_argument("--rows", type=int, nargs="*", default=[], help="sizes of made-up data, of 512 floats each")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repetitions = arguments.splits = 1
    folder = Path(tempfile.mkdtemp(prefix="tlray-bench-")).resolve()
    tables = {"lite0": arguments.table} if arguments.table else {}
    accuracy, splits = [], []
    for name in arguments.sets:
        tables[name] = tables.get(name) or table_of(folder, name)
        seeds = range(arguments.first_split, arguments.first_split + arguments.splits)
        summary, rows = against_scikit_learn(name, tables[name], folder, seeds)
        accuracy.append(summary)
        splits += rows
    times: list[dict[str, Any]] = []
    if arguments.repetitions:
        lite0 = tables.get("lite0") or table_of(folder, "lite0")
        times = grids(lite0, folder, arguments.repetitions, arguments.rows)
        print_table(times)
    shutil.rmtree(folder)
    finish({"accuracy": accuracy, "splits": splits, "grids": times}, accuracy or times)


if __name__ == "__main__":
    main()
