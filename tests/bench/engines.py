"""One network on a CPU by every engine that there is, from uint8 pixels in memory to vectors in memory; needs no Ray.

Bare is what one writes without us, with the engine's best settings: torch eagerly, under autocast and compiled with freezing;
OpenVINO with its hint for throughput and a stream for each core, its requests in a queue, pixels prepared in its graph;
onnxruntime from pixels that are prepared already, with a session of one thread for each core or one session of all. One
image, two or eight in a call: the best one counts. Ours is `Encoder` as extraction uses it, from a thread for each core that
keeps a lane for a turn of images, by each of the three engines and for recipes of bf16 at fp32 too, of which `engine: auto`
takes the fastest. Random weights: they cost as much as trained ones. Nobody's first layers are kept at fp32, but what our
OpenVINO keeps of its own so that every probe stays close.

Shape legend: B images, H height, W width, C channels.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.bench import onnx
from tests.bench.encoder import load, pictures, plain
from tests.bench.harness import finish, rates_in_turn, ratio
from tlray.models.backbones.images import Backbone
from tlray.models.backbones.network_input import to_network_input
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.engines.choice import Wanted, open_image_encoder
from tlray.models.encoder.engines.openvino.imports import openvino
from tlray.models.encoder.engines.openvino.model import convert_module
from tlray.models.encoder.memory import keep_freed_memory
from tlray.models.process.device import computes_as
from tlray.recipe import Compute

BACKBONES = (
    "timm:tf_efficientnet_lite0",
    "torchvision:resnet50",
    "torchvision:vit_b_16",
    "torchvision:mobilenet_v3_large",
    "torchvision:convnext_tiny",
    "timm:vit_small_patch14_dinov2@224",
)
BATCHES = (1, 2, 8)
CORES = os.cpu_count() or 1
PRECISIONS: tuple[Compute, ...] = ("fp32", "bf16") if computes_as(torch.device("cpu"), "bf16") == "bf16" else ("fp32",)
"""Where the processor has no bf16, recipes of bf16 are computed at fp32."""

Encode = Callable[[], object]


def in_batches(encode: Callable[[np.ndarray], object], images_BHWC: np.ndarray, batch: int) -> Encode:
    """As many calls as it takes."""
    starts = range(0, len(images_BHWC), batch)
    return lambda: [encode(images_BHWC[start : start + batch]) for start in starts]


def in_turns(encoder: Encoder, images_BHWC: np.ndarray) -> Encode:
    """As extraction's threads call the encoder: each keeps a lane for its part of the images."""
    pool = ThreadPoolExecutor(CORES)
    parts = np.array_split(images_BHWC, CORES)

    def encode_part(part_BHWC: np.ndarray) -> None:
        with encoder.turn():
            encoder.encode(part_BHWC)

    return lambda: list(pool.map(encode_part, parts))


def bare_openvino(backbone: Backbone, compute: str, images_BHWC: np.ndarray, batch: int) -> Encode:
    """Converted as `openvino.convert_model` does, but without telling its makers."""
    preprocessing = backbone.recipe.preprocessing
    model = convert_module(backbone.module, torch.zeros(batch, 3, *preprocessing.crop))
    prepared = openvino.preprocess.PrePostProcessor(model)
    pixels = prepared.input(0)
    pixels.tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    pixels.model().set_layout(openvino.Layout("NCHW"))
    mean, std = ([255 * value for value in values] for values in (preprocessing.mean, preprocessing.std))
    pixels.preprocess().convert_element_type(openvino.Type.f32).mean(mean).scale(std)
    settings = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": CORES, "INFERENCE_NUM_THREADS": CORES}
    hint = {"INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(compute, compute)}
    queue = openvino.AsyncInferQueue(openvino.Core().compile_model(prepared.build(), "CPU", settings | hint))
    found: dict[int, np.ndarray] = {}
    queue.set_callback(lambda request, start: found.__setitem__(start, request.get_output_tensor().data.copy()))

    def encode() -> None:
        for start in range(0, len(images_BHWC), batch):
            queue.start_async({0: images_BHWC[start : start + batch]}, start, share_inputs=True)
        queue.wait_all()
        assert len(found) * batch == len(images_BHWC)

    return encode


def ways_of(name: str, images: int, folder: Path, *, compiled: bool) -> dict[str, Encode]:
    """Each engine's ways, each with a module of its own: ours changes its memory layout."""
    backbone = load(name, "fp32")
    preprocessing = backbone.recipe.preprocessing
    images_BHWC = pictures(preprocessing.crop, images)
    inputs_BCHW = to_network_input(torch.from_numpy(images_BHWC), preprocessing).contiguous().numpy()
    path = folder / "network.onnx"
    onnx.export(name, path)
    ways: dict[str, Encode] = {}
    for compute in PRECISIONS:
        is_bf16 = compute == "bf16"
        ways[f"eager {compute}"] = partial(plain(load(name, compute), amp=is_bf16), images_BHWC)
        if compiled:
            ways[f"compiled {compute}"] = in_batches(plain(load(name, compute), amp=is_bf16, compiled=True), images_BHWC, 8)
        for batch in BATCHES:
            ways[f"openvino {compute}, {batch}"] = bare_openvino(load(name, "fp32"), compute, images_BHWC, batch)
        for engine in ("torch", "openvino") if is_bf16 else ("torch", "openvino", "onnxruntime"):
            for batch in (8,) if engine == "torch" else (2, 8):  # as `auto` tries them
                wanted = Wanted(engine, batch_size=batch, exact_below=0, lanes=CORES, folder=folder)
                encoder = open_image_encoder(load(name, compute), wanted)
                assert (encoder.engine, encoder.computes) == (engine, compute)
                ways[f"ours {compute}, {engine}, {batch}"] = in_turns(encoder, images_BHWC)
    for batch in BATCHES:
        ways[f"onnxruntime fp32, {batch}"] = partial(onnx.bare(path, 1, CORES, batch), inputs_BCHW)
    ways["onnxruntime fp32, 8, one session"] = partial(onnx.bare(path, CORES, 1, 8), inputs_BCHW)
    return ways


def best(rates: dict[str, float], engine: str, compute: str) -> float | None:
    """Of an engine's ways at a precision."""
    return max((rate for way, rate in rates.items() if way.startswith(f"{engine} {compute}")), default=None)


def main() -> None:
    """Measure each backbone and print the table and the JSON line."""
    keep_freed_memory()  # as the command does
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one repetition of half a second, one backbone")
    parser.add_argument("--only", nargs="+", default=list(BACKBONES), help="backbones, so that each can be a call of its own")
    parser.add_argument("--images", type=int, default=32, help="in one call")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, default=True, help="torch.compile, minutes")
    parser.add_argument("--seconds", type=float, default=2.0, help="least time of one repetition")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.only, arguments.repetitions, arguments.seconds = [BACKBONES[0]], 1, 0.5
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    for name in arguments.only:
        with tempfile.TemporaryDirectory(prefix="tlray-bench-") as folder:
            ways = ways_of(name, arguments.images, Path(folder), compiled=arguments.compiled)
            rates = rates_in_turn(ways, arguments.images, repetitions=arguments.repetitions, seconds=arguments.seconds)
        result[name] = rates
        print(name, {way: round(rate, 1) for way, rate in rates.items()}, flush=True)
        for compute in PRECISIONS:
            engines = {
                engine: best(rates, engine, compute) for engine in ("eager", "compiled", "onnxruntime", "openvino", "ours")
            }
            # A recipe of 16 bits may be computed so.
            engines["ours at fp32"] = best(rates, "ours", "fp32") if compute != "fp32" else None
            ours, peer = (
                max(rate for engine, rate in engines.items() if engine.startswith("ours") == is_ours and rate is not None)
                for is_ours in (True, False)
            )
            rows.append({"images/s": f"{name.partition(':')[2]} {compute}", **engines, "ours / best": ratio(ours, peer)})
    finish({"images_per_second": result, "openvino": openvino.__version__, "torch": torch.__version__}, rows)


if __name__ == "__main__":
    main()
