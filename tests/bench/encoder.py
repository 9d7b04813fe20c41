"""The network alone, from uint8 pixels in memory to vectors in memory; needs no Ray.

Eager is plain torch at fp32, AMP is torch's autocast to bf16 as its documents write it, ours is `Encoder` at the same two
precisions. Random weights: they cost as much as trained ones. Shape legend: B images, H height, W width, C channels.
"""

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch

from tests.bench.harness import finish, ratio, repeated_rate
from tlray.config import RecipeConfig
from tlray.lake.local_copy import local_copy
from tlray.models.backbones import Backbone, resolve_backbone, to_network_input
from tlray.models.encoder import Encoder
from tlray.recipe import Precision, golden_images

BACKBONES = ("torchvision:resnet50", "torchvision:vit_b_16", "timm:tf_efficientnet_lite0")
TWINS = {"ours fp32": "eager fp32", "ours bf16": "amp bf16"}

Variant = Callable[[np.ndarray], object]


def load(name: str, compute: str) -> Backbone:
    """A backbone with seeded weights."""
    precision = Precision.model_validate({"compute": compute})
    return resolve_backbone(RecipeConfig(backbone=name, weights="random:0", precision=precision), local_copy)


def plain(backbone: Backbone, *, amp: bool) -> Variant:
    """What one writes without us: normalise, forward pass, back to NumPy."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = backbone.module.to(device).eval()

    def encode(images_BHWC: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
            images_BCHW = to_network_input(torch.from_numpy(images_BHWC).to(device), backbone.recipe.preprocessing)
            return network(images_BCHW.contiguous()).float().cpu().numpy()

    return encode


def variants(name: str) -> dict[str, Variant]:
    """All ways to run a backbone, each with a module of its own: ours changes its memory layout."""
    return {
        "eager fp32": plain(load(name, "fp32"), amp=False),
        "amp bf16": plain(load(name, "bf16"), amp=True),
        "ours fp32": Encoder(load(name, "fp32")).encode,
        "ours bf16": Encoder(load(name, "bf16")).encode,
    }


def measure(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Median images a second of each variant; the variants take turns."""
    ways = variants(name)
    height, width = load(name, "fp32").recipe.preprocessing.crop
    golden = golden_images(height, width)
    images_BHWC = np.ascontiguousarray(np.resize(golden, (arguments.batch_size, *golden.shape[1:])))
    samples: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(arguments.repetitions):
        for way, encode in ways.items():
            samples[way].append(repeated_rate(lambda: encode(images_BHWC), len(images_BHWC), arguments.seconds))  # noqa: B023
    return {way: median(values) for way, values in samples.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one repetition of half a second, one backbone")
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--batch-size", type=int, default=256 if torch.cuda.is_available() else 16)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="least time of one repetition")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.backbones, arguments.repetitions, arguments.seconds = [BACKBONES[-1]], 1, 0.5
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    for name in arguments.backbones:
        rates = measure(name, arguments)
        ratios = {f"{ours} / {theirs}": ratio(rates[ours], rates[theirs]) for ours, theirs in TWINS.items()}
        rows.append({"images/s": name, **rates, **ratios})
        result[name] = {"images_per_second": rates, "ratios": ratios}
    finish({"backbones": result, "batch_size": arguments.batch_size, "gpu": torch.cuda.is_available()}, rows)


if __name__ == "__main__":
    main()
