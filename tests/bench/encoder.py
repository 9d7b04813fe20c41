"""The network alone, from uint8 pixels in memory to vectors in memory; needs no Ray.

Eager is plain torch at fp32; amp is torch's autocast to bf16 as its documents write it, in channels_last; compiled is
the same under `torch.compile`, on a CPU with freezing, on a GPU with "max-autotune" (with CUDA graphs). Ours is `Encoder` as
extraction uses it (on a CPU with a lane for each core) and what it compiles ahead of time. Random weights: they cost as much as
trained ones. Shape legend: B images, H height, W width, C channels.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.bench.harness import finish, rates_in_turn, ratio
from tlray.config import RecipeConfig
from tlray.lake.storage.local_copy import local_copy
from tlray.models.backbones.images import Backbone, resolve_backbone
from tlray.models.backbones.network_input import to_network_input
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.engines.compiled import CompiledCache
from tlray.models.encoder.golden import make_recipe_file
from tlray.models.encoder.memory import keep_freed_memory
from tlray.models.encoder.network.network import Network
from tlray.models.process.device import choose_device, computes_as
from tlray.recipe import Precision, golden_images

BACKBONES = ("torchvision:resnet50", "torchvision:vit_b_16", "timm:tf_efficientnet_lite0")
PEERS = ("eager fp32", "amp bf16", "compiled bf16")
PEAK_TFLOPS = {"NVIDIA H200": 989.0, "NVIDIA H100": 989.0, "NVIDIA A100": 312.0, "NVIDIA L4": 121.0}
"""Dense bf16, of NVIDIA's data sheets (SXM where there are several)."""

Variant = Callable[[np.ndarray], object]


def load(name: str, compute: str) -> Backbone:
    """A backbone with seeded weights; of a name that ends in `@224`, say, for images of that side in place of its own."""
    backbone, _, side = name.partition("@")
    wishes = {"backbone": backbone, "weights": "random:0", "precision": Precision.model_validate({"compute": compute})}
    if side:
        wishes["preprocessing"] = {"resize": int(side), "crop": int(side)}
    return resolve_backbone(RecipeConfig.model_validate(wishes), local_copy)


def pictures(crop: tuple[int, int], count: int) -> np.ndarray:
    """Images_BHWC, uint8: the golden images, again and again."""
    golden_BHWC = golden_images(*crop)
    return np.ascontiguousarray(np.resize(golden_BHWC, (count, *golden_BHWC.shape[1:])))


def plain(backbone: Backbone, *, amp: bool, compiled: bool = False) -> Variant:
    """What one writes without us: normalise, forward pass, back to NumPy."""
    device = choose_device("auto")
    network = backbone.module.to(device).eval()
    if amp:
        network = network.to(memory_format=torch.channels_last)
    run: Any = network
    if compiled:
        run = torch.compile(network, mode="max-autotune" if device.type == "cuda" else None)

    def encode(images_BHWC: np.ndarray) -> np.ndarray:
        with (
            torch.no_grad(),
            torch._inductor.config.patch(freezing=True),
            torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp),
        ):
            images_BCHW = to_network_input(torch.from_numpy(images_BHWC).to(device), backbone.recipe.preprocessing)
            return run(images_BCHW if amp else images_BCHW.contiguous()).float().cpu().numpy()

    return encode


def ours_compiled(backbone: Backbone, folder: Path) -> Variant:
    """Our encoder compiled ahead of time, on all cores or the GPU."""
    cache = CompiledCache(make_recipe_file(backbone), choose_device("auto"), folder)
    assert cache.compile(Network.of(backbone, choose_device("auto"), 0)) == "made"
    encoder = cache.load()
    assert encoder is not None
    return encoder.encode


def variants(name: str, folder: Path, *, compiled: bool) -> dict[str, Variant]:
    """All ways to run a backbone, each with a module of its own: ours changes its memory layout."""
    ways: dict[str, Callable[[], Variant]] = {
        "eager fp32": lambda: plain(load(name, "fp32"), amp=False),
        "amp bf16": lambda: plain(load(name, "bf16"), amp=True),
        "compiled bf16": lambda: plain(load(name, "bf16"), amp=True, compiled=True),
        "ours fp32": lambda: Encoder(load(name, "fp32"), lanes=os.cpu_count()).encode,
        "ours bf16": lambda: Encoder(load(name, "bf16"), exact_below=0, lanes=os.cpu_count()).encode,
        "ours compiled bf16": lambda: ours_compiled(load(name, "bf16"), folder),
    }
    if computes_as(choose_device("auto"), "bf16") == "fp32":
        del ways["amp bf16"], ways["compiled bf16"]  # torch would emulate it, an image or two a second
    return {way: make() for way, make in ways.items() if compiled or "compiled" not in way}


def flops(backbone: Backbone) -> float:
    """Floating-point operations of one image's forward pass, as torch counts them (a multiply-add is two)."""
    images_BHWC = torch.from_numpy(golden_images(*backbone.recipe.preprocessing.crop)[:1])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone.module(to_network_input(images_BHWC, backbone.recipe.preprocessing))
    return float(counter.get_total_flops())


def measure(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Median images a second of each variant; the variants take turns."""
    ways = variants(name, folder, compiled=arguments.compiled)
    images_BHWC = pictures(load(name, "fp32").recipe.preprocessing.crop, arguments.batch_size)
    works = {way: partial(encode, images_BHWC) for way, encode in ways.items()}
    return rates_in_turn(works, len(images_BHWC), repetitions=arguments.repetitions, seconds=arguments.seconds)


def main() -> None:
    keep_freed_memory()  # as the command does
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one repetition of half a second, one backbone")
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--batch-size", type=int, default=256 if torch.cuda.is_available() else 64)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument(
        "--compiled",
        action=argparse.BooleanOptionalAction,
        default=torch.cuda.is_available(),
        help="the compiled variants too; on a CPU they take a minute each to compile, and extraction does not use ours there",
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="least time of one repetition")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.backbones, arguments.repetitions, arguments.seconds = [BACKBONES[-1]], 1, 0.5
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    peak = None
    if torch.cuda.is_available():
        peak = next((peak for chip, peak in PEAK_TFLOPS.items() if torch.cuda.get_device_name().startswith(chip)), None)
    for name in arguments.backbones:
        with tempfile.TemporaryDirectory(prefix="tlray-bench-") as folder:
            rates = measure(name, arguments, Path(folder))
        best_peer = max(rates[peer] for peer in PEERS if peer in rates)
        ours = max(rates["ours bf16"], rates.get("ours compiled bf16", 0.0))
        tflops = ours * flops(load(name, "fp32")) / 1e12
        shares = {"ours / best": ratio(ours, best_peer), "TFLOP/s": tflops}
        rows.append({"images/s": name.partition(":")[2], **rates, **shares})
        result[name] = {"images_per_second": rates, "ratio_to_best_peer": shares["ours / best"], "tflops": round(tflops, 3)}
        if peak is not None:
            result[name]["share_of_peak"] = round(tflops / peak, 4)
    finish({"backbones": result, "batch_size": arguments.batch_size, "gpu": torch.cuda.is_available()}, rows)


if __name__ == "__main__":
    main()
