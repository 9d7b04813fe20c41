"""ONNX files: our encoder against bare onnxruntime with its best settings; needs no Ray.

Bare is what one writes without us: prepared float32 inputs in memory, one session with as many threads as cores, or one of one
thread for each core; one image or eight in a call; the best of these counts. Ours is `Encoder` as extraction uses it, from
uint8 pixels to vectors, with a lane for each core. Random weights, exported by torch.

Shape legend: B images, H height, W width, C channels.
"""

import argparse
import os
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from tests.bench.encoder import load, pictures
from tests.bench.harness import finish, rates_in_turn, ratio
from tlray.config import RecipeConfig
from tlray.lake.storage.local_copy import local_copy
from tlray.models.backbones.images import resolve_backbone
from tlray.models.backbones.network_input import to_network_input
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.memory import keep_freed_memory
from tlray.recipe import Preprocessing

BACKBONES = ("torchvision:resnet50", "timm:tf_efficientnet_lite0")
BATCHES = (1, 8)

Encode = Callable[[np.ndarray], object]


def export(name: str, path: Path) -> Preprocessing:
    """A backbone of torch as an ONNX file that takes any number of images and says how they are prepared."""
    backbone = load(name, "fp32")
    preprocessing = backbone.recipe.preprocessing
    example = torch.zeros(2, 3, *preprocessing.crop)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        sizes = ({0: torch.export.Dim("batch")},)
        program = torch.onnx.export(backbone.module, (example,), dynamic_shapes=sizes, dynamo=True, verbose=False)
    assert program is not None
    program.model.metadata_props["tlray.preprocessing"] = preprocessing.model_dump_json()
    program.save(str(path))
    return preprocessing


def bare(path: Path, threads: int, sessions: int, batch: int) -> Encode:
    """A loop around onnxruntime: `sessions` threads with a session each, each session with `threads` of its own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    runs = [onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for _ in range(sessions)]
    name = runs[0].get_inputs()[0].name
    pool = ThreadPoolExecutor(sessions)

    def encode(inputs_BCHW: np.ndarray) -> None:
        def work(number: int) -> None:
            for start in range(number * batch, len(inputs_BCHW), sessions * batch):
                runs[number].run(None, {name: inputs_BCHW[start : start + batch]})

        list(pool.map(work, range(sessions)))

    return encode


def measure(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Median images a second of each way; they take turns."""
    path, cores = folder / "network.onnx", os.cpu_count() or 1
    preprocessing = export(name, path)
    images_BHWC = pictures(preprocessing.crop, arguments.images)
    inputs_BCHW = to_network_input(torch.from_numpy(images_BHWC), preprocessing).contiguous().numpy()
    ways: dict[str, tuple[Encode, np.ndarray]] = {}
    for batch in BATCHES:
        ways[f"bare 1x{cores}, {batch}"] = bare(path, cores, 1, batch), inputs_BCHW
        ways[f"bare {cores}x1, {batch}"] = bare(path, 1, cores, batch), inputs_BCHW
    encoder = Encoder(resolve_backbone(RecipeConfig(backbone=f"onnx:{path}"), local_copy), lanes=cores)
    ways["ours"] = encoder.encode, images_BHWC
    works = {way: partial(encode, images) for way, (encode, images) in ways.items()}
    return rates_in_turn(works, arguments.images, repetitions=arguments.repetitions, seconds=arguments.seconds)


def main() -> None:
    """Measure each backbone and print the table and the JSON line."""
    keep_freed_memory()  # as the command does
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one repetition of half a second, one backbone")
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--images", type=int, default=64, help="in one call")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="least time of one repetition")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.backbones, arguments.repetitions, arguments.seconds = [BACKBONES[-1]], 1, 0.5
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    for name in arguments.backbones:
        with tempfile.TemporaryDirectory(prefix="tlray-bench-") as folder:
            rates = measure(name, arguments, Path(folder))
        best = max(rate for way, rate in rates.items() if way.startswith("bare"))
        share = ratio(rates["ours"], best)
        rows.append({"images/s": name.partition(":")[2], **rates, "ours / best": share})
        result[name] = {"images_per_second": rates, "ratio_to_best_bare": share}
    finish({"backbones": result, "onnxruntime": onnxruntime.__version__}, rows)


if __name__ == "__main__":
    main()
