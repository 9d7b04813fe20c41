"""Heads on a table: a grid of 64 against one head, and the best head against scikit-learn.

The data are scikit-learn's 1,797 digits as EfficientNet-Lite0 with its ImageNet weights sees them. Ours is `tlray train` from
the table to the model folder, refit included; scikit-learn is `LogisticRegressionCV` (10 values of C, 5 folds) behind a
`StandardScaler`, with the vectors in memory already. Both learn from the same rows (ours: training and validation) and are
measured on the same test rows, turn by turn. The grid's time is that of training alone, and of the whole command without the
start of Python. `--rows` adds the grid on made-up vectors of other sizes.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.bench.harness import BACKBONE, WEIGHTS, finish, ratio
from tlray.config import ExtractConfig, TrainConfig
from tlray.demo.digits import write_digits
from tlray.extract.job import extract
from tlray.lake.parts import vectors_of
from tlray.lake.table import Table
from tlray.train.examples import Examples, Split
from tlray.train.grid import train_trials
from tlray.train.job import train
from tlray.train.splits import hash_splits
from tlray.train.trials import Data, Schedule, Trial
from tlray.train.vectors import LoadedVectors

HEADS = 64
ONE = 1e-2
DECAYS = tuple(float(value) for value in np.geomspace(1e-6, 10, HEADS))
RATES = tuple(float(value) for value in np.geomspace(1e-4, 1e-1, 8))


def digits_table(folder: Path) -> str:
    write_digits(folder / "digits")
    recipe = {"backbone": BACKBONE, "weights": WEIGHTS}
    source = {"uri": str(folder / "digits"), "labels": "folder"}
    extract(ExtractConfig.model_validate({"source": source, "recipe": recipe, "table": str(folder / "table"), "local": True}))
    return str(folder / "table")


def ours(table: str, out: Path, seed: int, **changes: object) -> tuple[dict[str, Any], float]:
    settings = {"table": table, "out": str(out), "seed": seed, "rebuild": True} | changes
    config = TrainConfig.model_validate(settings)
    began = time.perf_counter()
    result = train(config)
    return result, time.perf_counter() - began


def scikit_learn(table: str, seed: int) -> tuple[float, float]:
    """Test accuracy and seconds."""
    rows = Table.open(f"file://{table}").read(["uri", "label", "embedding"]).sort_by("uri")
    features_ND, labels_N = vectors_of(rows["embedding"]), np.array(rows["label"].to_pylist())
    splits_N = hash_splits(
        rows["uri"].to_pylist(), np.unique(labels_N, return_inverse=True)[1], TrainConfig(out="x").split, seed
    )
    known, test = splits_N != Split.TEST, splits_N == Split.TEST
    began = time.perf_counter()
    model = make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=10, cv=5, max_iter=1000, scoring="accuracy"))
    model.fit(features_ND[known], labels_N[known])
    seconds = time.perf_counter() - began
    return float(np.mean(model.predict(features_ND[test]) == labels_N[test])), seconds


def against_scikit_learn(table: str, folder: Path, repetitions: int) -> list[dict[str, Any]]:
    rows = []
    for seed in range(repetitions):
        result, seconds = ours(table, folder / "best", seed, grid={"weight_decays": DECAYS}, refit=True)
        accuracy, their_seconds = scikit_learn(table, seed)
        our_accuracy = result["metrics"]["test"]["accuracy"]["value"]
        rows.append(
            {
                "split": seed,
                "ours": our_accuracy,
                "scikit-learn": accuracy,
                "points": 100 * (our_accuracy - accuracy),
                "ours_seconds": seconds,
                "scikit-learn_seconds": their_seconds,
            }
        )
    return rows


def grid_against_one(table: str, folder: Path, repetitions: int) -> dict[str, float]:
    """Median seconds of the whole command for one head and for 64, turn by turn, in a process that is warm already."""
    times: dict[str, list[float]] = {"one": [], "grid": [], "one adamw": [], "grid adamw": []}
    kinds: dict[str, dict[str, Any]] = {
        "one": {"grid": {"weight_decays": [ONE]}},
        "grid": {"grid": {"weight_decays": DECAYS}},
        "one adamw": {"grid": {"weight_decays": [ONE], "learning_rates": [1e-3]}, "epochs": 20, "patience": 20},
        "grid adamw": {"grid": {"weight_decays": DECAYS[::8], "learning_rates": RATES}, "epochs": 20, "patience": 20},
    }
    for _ in range(repetitions):
        for name, changes in kinds.items():
            times[name].append(ours(table, folder / "model", 0, **changes)[1])
    return {name: median(values) for name, values in times.items()}


def training_alone(features_ND: np.ndarray, classes_N: np.ndarray, repetitions: int) -> dict[str, float]:
    """Median seconds from vectors in memory to trained heads, standardising and the basis included."""
    uris = [f"s3://x/{at}" for at in range(len(classes_N))]
    splits_N = hash_splits(uris, classes_N, TrainConfig(out="x").split, 0)
    names = tuple(str(name) for name in range(int(classes_N.max()) + 1))
    examples = Examples(pa.array(uris), classes_N, splits_N, "single", names, np.arange(len(uris)))
    config = TrainConfig(out="x")
    times: dict[str, list[float]] = {"one": [], "grid": []}
    for repetition in range(repetitions + 1):
        for name, decays in (("one", (ONE,)), ("grid", DECAYS)):
            data = Data(LoadedVectors(features_ND), examples, torch.ones(len(uris)), len(uris))
            trials = [Trial("embedding", "cg", decay) for decay in decays]
            began = time.perf_counter()
            train_trials(
                data, trials, Schedule(config.epochs, config.patience), config, 8 * 2**30, lambda _epoch, _metrics: None
            )
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="once each")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--table", help="a table of the digits that is there already")
    parser.add_argument("--rows", type=int, nargs="*", default=[], help="sizes of made-up data, of 512 floats each")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repetitions = 1
    folder = Path(tempfile.mkdtemp(prefix="tlray-bench-")).resolve()
    table = arguments.table or digits_table(folder)
    accuracy = against_scikit_learn(table, folder, arguments.repetitions)
    times = grid_against_one(table, folder, arguments.repetitions)
    rows = Table.open(f"file://{table}").read(["label", "embedding"])
    features_ND = vectors_of(rows["embedding"])
    classes_N = np.unique(np.array(rows["label"].to_pylist()), return_inverse=True)[1]
    alone = {"digits": training_alone(features_ND, classes_N, arguments.repetitions)}
    alone |= {f"{count} x 512": training_alone(*made_up(count, 512), 1) for count in arguments.rows}
    shutil.rmtree(folder)
    grids = [
        {"grid of 64": "command, cg", "one": times["one"], "all": times["grid"], "ratio": ratio(times["grid"], times["one"])},
        {
            "grid of 64": "command, adamw",
            "one": times["one adamw"],
            "all": times["grid adamw"],
            "ratio": ratio(times["grid adamw"], times["one adamw"]),
        },
        *(
            {
                "grid of 64": f"training alone, {name}",
                "one": one["one"],
                "all": one["grid"],
                "ratio": ratio(one["grid"], one["one"]),
            }
            for name, one in alone.items()
        ),
    ]
    summary = {
        "points": round(float(np.mean([row["points"] for row in accuracy])), 3),
        "time_ratio": ratio(
            median(row["ours_seconds"] for row in accuracy), median(row["scikit-learn_seconds"] for row in accuracy)
        ),
        "grid_ratio": grids[0]["ratio"],
        "training_ratio": grids[2]["ratio"],
    }
    for row in grids:
        print(row)
    finish(summary | {"accuracy": accuracy, "grids": grids}, accuracy)


if __name__ == "__main__":
    main()
