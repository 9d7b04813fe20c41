"""Our own extraction as users run it, and the two stages that bound it, each alone on all cores.

Of `tlray` the rate of its own JSON object is the whole command's, imports excepted; the steady one is of the parts that its
workers write, as seen from outside in the files of the table.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.harness import Job, engine_main, repeated_rate, steady_rate
from tests.bench.networks import gpus, load, recipe_config
from tlray.config import ExtractConfig, SourceConfig
from tlray.extraction.extract import extract_command
from tlray.lake.image.decode import decode_image
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.golden import open_encoder
from tlray.models.encoder.memory import keep_freed_memory
from tlray.recipe import Preprocessing

MAX_PIXELS = 2**28
ENCODE_IMAGES = 64
TURNS = 4
"""Times that the images are embedded between two looks at the clock, as threads wait for the last one there."""

LONG_RUN_IMAGES = 10**6
"""So many that a trial of the engines pays."""


def tlray(job: Job, *, local: bool) -> dict[str, Any]:
    """The `extract` command, with a table in the scratch folder."""
    table = job.scratch / "table"
    keep_freed_memory()
    result = extract_command(
        ExtractConfig(source=SourceConfig(uri=str(job.photos)), recipe=recipe_config(job), table=str(table), local=local)
    )
    assert result["ok"] == len(job.paths), result
    return {
        "images_per_second": steady_rate_of_table(table),
        "own_images_per_second": result["images_per_second"],
        "write_and_commit_share": write_and_commit_share(result["stages"]),
        "bottleneck": result["bottleneck"],
        "computed_by": " and ".join(result["computed_by"]),
    }


def write_and_commit_share(stages: dict[str, dict[str, float]]) -> float:
    """What writing takes of a run by its own account: `write` and `upload` of the cores' time, `commit` of the driver's.

    At most, as an upload (with a local table: the time until the disk has the file) only waits, and other threads go on.
    """
    return sum(stages[stage]["share"] for stage in ("write", "upload", "commit") if stage in stages)


def steady_rate_of_table(table: Path) -> float | None:
    """Images a second, by the parts of new rows and when each was written."""
    return steady_rate(parts_of_table(table))


def parts_of_table(table: Path) -> list[tuple[float, int]]:
    """When each part of new rows was written, and how many it has."""
    parts: list[tuple[float, int]] = []
    for log in sorted((table / "_delta_log").glob("*.json")):
        actions = [json.loads(line) for line in log.read_text().splitlines()]
        added = [action["add"] for action in actions if "add" in action and action["add"]["dataChange"]]
        parts += [((table / add["path"]).stat().st_mtime, json.loads(add["stats"])["numRecords"]) for add in added]
    return parts


def decode(job: Job) -> dict[str, Any]:
    """Decoding and resizing alone: one process a core, bytes already in memory."""
    cores = os.cpu_count() or 1
    paths = [str(path) for path in job.paths]
    preprocessing = load(job).recipe.preprocessing
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as processes:
        shares = [paths[first::cores] for first in range(cores)]
        rates = list(processes.map(partial(_decode_rate, preprocessing=preprocessing, seconds=job.seconds), shares))
    return {"images_per_second": sum(rates)}


def _decode_rate(paths: list[str], *, preprocessing: Preprocessing, seconds: float) -> float:
    datas = [Path(path).read_bytes() for path in paths[:ENCODE_IMAGES]]

    def work() -> None:
        for data in datas:
            decode_image(data, preprocessing, max_pixels=MAX_PIXELS)

    return repeated_rate(work, len(datas), seconds)


def encode(job: Job) -> dict[str, Any]:
    """Our encoder alone, on all cores or the accelerator, from decoded images in memory.

    By the engine that `tlray` takes in a long run, and as its workers call it: each thread with a core for a turn of images.
    What a trial finds is kept, so that all that come later take the same.
    """
    keep_freed_memory()
    backbone = load(job)
    encoder = open_encoder(backbone, lanes=os.cpu_count(), engine="auto", images=LONG_RUN_IMAGES)
    assert isinstance(encoder, Encoder)
    paths = job.paths[: max(ENCODE_IMAGES, 2 * encoder.batch_size)]
    images = [
        decode_image(path.read_bytes(), backbone.recipe.preprocessing, max_pixels=MAX_PIXELS).pixels_HWC for path in paths
    ]
    images_BHWC = np.stack(images)
    size = encoder.turn_images or len(images_BHWC)
    turns = TURNS * [images_BHWC[start : start + size] for start in range(0, len(images_BHWC), size)]

    def turn(turn_BHWC: np.ndarray) -> None:
        with encoder.turn():
            encoder.encode(turn_BHWC)

    with ThreadPoolExecutor(os.cpu_count() if encoder.turn_images else 1) as threads:
        rate = repeated_rate(lambda: list(threads.map(turn, turns)), sum(map(len, turns)), job.seconds)
    return {"images_per_second": rate, "gpus": gpus(), "computed_by": encoder.computed_by}


ENGINES: dict[str, Callable[[Job], dict[str, Any]]] = {
    "tlray": partial(tlray, local=False),
    "tlray_local": partial(tlray, local=True),
    "decode": decode,
    "encode": encode,
}

if __name__ == "__main__":
    engine_main(ENGINES)
