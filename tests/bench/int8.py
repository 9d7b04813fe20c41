"""Networks at int8 against themselves at fp32: how far their embeddings drift, and how much faster they are; needs no Ray.

Drift is the least cosine to torch's fp32 over the probe images, on which they were calibrated, and over crops of the two sample
photographs of scikit-learn, on which they were not. Speed is that of `Encoder` as extraction uses it, with a lane for each
core, by onnxruntime at both. Shape legend: B images, H height, W width, C channels.
"""

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from sklearn.datasets import load_sample_images

from tests.bench.encoder import pictures
from tests.bench.harness import BACKBONE, WEIGHTS, finish, rates_in_turn, ratio
from tlray.config import RecipeConfig
from tlray.lake.storage.local_copy import local_copy
from tlray.models.backbones.images import Backbone, resolve_backbone
from tlray.models.encoder.encoder import Encoder, at_fp32
from tlray.models.encoder.engines.choice import Wanted, open_image_encoder
from tlray.models.encoder.golden import make_encoder, make_recipe_file
from tlray.recipe import Precision, RecipeFile, least_cosine

NETWORKS = (f"{BACKBONE}@{WEIGHTS}", "torchvision:resnet50", "torchvision:mobilenet_v3_large", "timm:vit_small_patch16_224")
CORES = os.cpu_count() or 1
CROPS = 8


def load(network: str, compute: str) -> Backbone:
    """A network with the weights after its `@`, or with seeded ones."""
    name, _, weights = network.partition("@")
    precision = Precision.model_validate({"compute": compute})
    return resolve_backbone(RecipeConfig(backbone=name, weights=weights or "random:0", precision=precision), local_copy)


def photo_crops(height: int, width: int) -> np.ndarray:
    """Images_BHWC, uint8, at seeded places."""
    generator = np.random.default_rng(0)
    crops = []
    for photo_HWC in load_sample_images().images:
        for _ in range(CROPS):
            top, left = generator.integers(0, np.array(photo_HWC.shape[:2]) - (height, width) + 1)
            crops.append(photo_HWC[top : top + height, left : left + width])
    return np.stack(crops)


def file_of(network: str, folder: Path | None) -> RecipeFile:
    """The recipe file of a network, kept in a folder where one is given, as calibration is not what is measured."""
    path = folder / f"{network.replace('/', '_')}.json" if folder else None
    if path is not None and path.exists():
        return RecipeFile.from_json(path.read_bytes(), str(path))
    file = make_recipe_file(load(network, "int8"))
    if path is not None:
        path.write_bytes(file.to_json())
    return file


def measure(network: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One network's row."""
    backbone, file = load(network, "int8"), file_of(network, arguments.folder)
    images_BHWC = pictures(backbone.recipe.preprocessing.crop, arguments.images)
    crops_BHWC = photo_crops(*backbone.recipe.preprocessing.crop)
    rounded = make_encoder(file, local_copy, where="here", backbone=backbone, lanes=CORES)
    assert isinstance(rounded, Encoder) and file.quantization is not None
    ours, exact = (encoder.encode(crops_BHWC)["embedding"] for encoder in (rounded, at_fp32(backbone)))
    whole = open_image_encoder(load(network, "fp32"), Wanted("onnxruntime", lanes=CORES))
    assert whole.engine == "onnxruntime"
    ways = {"fp32": partial(whole.encode, images_BHWC), "int8": partial(rounded.encode, images_BHWC)}
    rates = rates_in_turn(ways, len(images_BHWC), repetitions=arguments.repetitions, seconds=arguments.seconds)
    return {
        "network": network.partition("@")[0],
        "at fp32": file.exact_below,
        "probes": round(file.quantization.least_cosine, 4),
        "photos": round(least_cosine(ours, exact), 4),
        **rates,
        "int8 / fp32": ratio(rates["int8"], rates["fp32"]),
    }


def main() -> None:
    """Measure each network and print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one repetition, a small network")
    parser.add_argument("--only", nargs="+", default=list(NETWORKS), help="networks, as NAME or NAME@WEIGHTS")
    parser.add_argument("--folder", type=Path, help="keep recipe files here, and take them from here")
    parser.add_argument("--images", type=int, default=16, help="in one call")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="least time of one repetition")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.only, arguments.repetitions, arguments.seconds = ["timm:test_resnet"], 1, 0.1
    rows = [measure(network, arguments) for network in arguments.only]
    finish({"int8": rows, "onnxruntime": onnxruntime.__version__}, rows)


if __name__ == "__main__":
    main()
