"""A GPU machine measured in one command of less than six minutes, without Ray; on a CPU it runs the same steps, small.

Steps: the encoder (eager, autocast, compiled, a CUDA graph of the autocast network, ours), whether decoding keeps up with it,
decoding by the device (nvJPEG on GPUs) with how far its pixels and their embeddings are from ours, FAISS's k-means and exact
search on the GPU against the CPU, and training the last block of a ResNet-50 as we do it against a plain loop. Each step is
given a share of the time, and says in the result when it was left out for want of it.

Shape legend: B images, H height, W width, C channels, N vectors, D dimensions, K neighbours.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from torch import nn
from torchvision.io import decode_jpeg
from torchvision.transforms.v2.functional import InterpolationMode, center_crop, resize

from tests.bench import encoder as encoders
from tests.bench.decode import PREPROCESSING, trained_encoder, with_tlray
from tests.bench.harness import finish, rates_in_turn, ratio, repeated_rate
from tests.bench.photos import photo_bytes
from tlray.models.backbones.network_input import to_network_input
from tlray.models.encoder.memory import keep_freed_memory
from tlray.models.layers.heads import Head, HeadSpec
from tlray.models.process.device import choose_device
from tlray.recipe import least_cosine
from tlray.training.network.learner.transfer_network import TransferNetwork
from tlray.training.network.worker import anatomy_of

LIMIT_SECONDS = 330.0
CUT = "layer3"
CLASSES = 10
PHOTO_SIZES = {"0.2 MP": (512, 384), "0.8 MP": (1024, 768)}

Found = dict[str, Any]


def graph(name: str, images_BHWC: np.ndarray) -> encoders.Variant:
    """The autocast network replayed from a CUDA graph, with the copies to and from the device."""
    backbone = encoders.load(name, "bf16")
    network = backbone.module.cuda().to(memory_format=torch.channels_last).eval()
    static_BHWC = torch.from_numpy(images_BHWC).cuda()

    def forward() -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
            output: torch.Tensor = network(to_network_input(static_BHWC, backbone.recipe.preprocessing)).float()
            return output

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # warm-up on a stream of its own, as torch's documents ask for
        for _ in range(3):
            forward()
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        output_BD = forward()

    def encode(batch_BHWC: np.ndarray) -> np.ndarray:
        static_BHWC.copy_(torch.from_numpy(batch_BHWC))
        captured.replay()
        return output_BD.cpu().numpy()

    return encode


def encoder_step(name: str, arguments: argparse.Namespace) -> Found:
    """Images a second of each way to run one network."""
    images_BHWC = encoders.pictures(encoders.load(name, "fp32").recipe.preprocessing.crop, arguments.batch_size)
    with tempfile.TemporaryDirectory(prefix="tlray-bench-") as folder:
        ways = encoders.variants(name, Path(folder), compiled=arguments.compiled)
        if torch.cuda.is_available():
            ways["CUDA graph bf16"] = graph(name, images_BHWC)
        works = {way: partial(encode, images_BHWC) for way, encode in ways.items()}
        rates = rates_in_turn(works, len(images_BHWC), repetitions=1, seconds=arguments.seconds)
    ours = max(rate for way, rate in rates.items() if way.startswith("ours") and "bf16" in way)
    theirs = max(rate for way, rate in rates.items() if not way.startswith("ours"))
    return {"images_per_second": rates, "best_ours": ours, "ratio_to_best_peer": ratio(ours, theirs)}


def decode_step(seconds: float) -> Found:
    """Images a second that all cores decode and resize, by the size of the photo."""
    cores = os.cpu_count() or 1
    found: Found = {}
    for label, size in PHOTO_SIZES.items():
        photos = [photo_bytes(seed, size) for seed in range(8)] * max(1, cores // 4)
        with ThreadPoolExecutor(cores) as threads:
            found[label] = repeated_rate(lambda: list(threads.map(with_tlray, photos)), len(photos), seconds)  # noqa: B023
    return {"images_per_second": found, "cores": cores}


def device_decode_step(seconds: float) -> Found:
    """Images a second that the device decodes, resizes and crops, as torchvision does it (nvJPEG on GPUs), and their drift.

    Levels are of uint8; the least cosine is of EfficientNet-Lite0's trained embeddings at fp32, to those of our pixels.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"  # torchvision decodes nowhere else
    encode = trained_encoder()
    found: Found = {"device": device}
    for label, size in PHOTO_SIZES.items():
        photos = [photo_bytes(seed, size) for seed in range(32)]
        encoded = [torch.frombuffer(bytearray(photo), dtype=torch.uint8) for photo in photos]
        ours_BHWC = np.stack([with_tlray(photo) for photo in photos])

        def decode() -> np.ndarray:
            images = decode_jpeg(encoded, mode="RGB", device=device)  # noqa: B023
            side, crop = min(PREPROCESSING.resize or ()), list(PREPROCESSING.crop)
            resized = [resize(image, [side], InterpolationMode.BICUBIC, antialias=True) for image in images]
            return torch.stack([center_crop(image, crop) for image in resized]).permute(0, 2, 3, 1).cpu().numpy()

        try:
            theirs_BHWC = decode()
        except RuntimeError as error:
            return found | {"left_out": f"torchvision cannot decode there: {error}"}
        levels_BHWC = np.abs(theirs_BHWC.astype(int) - ours_BHWC)
        found[label] = {
            "images_per_second": repeated_rate(decode, len(photos), seconds),
            "most_levels_off": int(levels_BHWC.max()),
            "mean_levels_off": float(levels_BHWC.mean()),
            "least_cosine": least_cosine(encode(ours_BHWC), encode(theirs_BHWC)),
        }
    return found


def faiss_step(rows: int, lists: int, dimensions: int = 512, k: int = 10, queries: int = 1000) -> Found:
    """Seconds of k-means for an IVF and of exact batch search, on the CPU and on all GPUs; and how far answers agree."""
    rng = np.random.default_rng(0)
    centres_LD = rng.standard_normal((64, dimensions), np.float32)
    vectors_ND = centres_LD[rng.integers(64, size=rows)] + rng.standard_normal((rows, dimensions), np.float32)
    queries_BD = vectors_ND[rng.choice(rows, queries, replace=False)]
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0

    def timed(work: Callable[[], Any]) -> tuple[float, Any]:
        began = time.perf_counter()
        result = work()
        return time.perf_counter() - began, result

    def flat(*, on_gpu: bool) -> Any:
        index = faiss.IndexFlatIP(dimensions)
        index = faiss.index_cpu_to_all_gpus(index) if on_gpu else index
        index.add(vectors_ND)
        return index

    def kmeans(*, on_gpu: bool) -> None:
        index = faiss.index_factory(dimensions, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
        if on_gpu:
            index.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(dimensions))
        index.train(vectors_ND)

    found: Found = {"rows": rows, "lists": lists, "gpus": gpus}
    answers = {}
    for place in ("cpu", "gpu") if gpus else ("cpu",):
        on_gpu = place == "gpu"
        found[f"kmeans_{place}_seconds"], _ = timed(lambda: kmeans(on_gpu=on_gpu))  # noqa: B023
        index = flat(on_gpu=on_gpu)
        index.search(queries_BD[:1], k)
        found[f"exact_{place}_seconds"], answers[place] = timed(lambda: index.search(queries_BD, k)[1])  # noqa: B023
    if gpus:
        same = [len(np.intersect1d(ours, theirs)) / k for ours, theirs in zip(answers["gpu"], answers["cpu"], strict=True)]
        found["agreement"] = float(np.mean(same))
    return found


def suffix_step(batch_size: int, seconds: float) -> Found:
    """Images a second of training a ResNet-50 after CUT: our network in training, and a plain loop's, both in bf16 autocast."""
    device = choose_device("auto")
    images_BHWC = torch.from_numpy(encoders.pictures((224, 224), batch_size)).to(device)
    targets_B = (torch.arange(batch_size) % CLASSES).to(device)

    def rate(network: nn.Module, prepare: Callable[[torch.Tensor], torch.Tensor]) -> float:
        network = network.to(device, memory_format=torch.channels_last).train()
        optimizer = torch.optim.AdamW([each for each in network.parameters() if each.requires_grad], lr=1e-3)

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype=torch.bfloat16):
                scores_BK = network(prepare(images_BHWC))
            nn.functional.cross_entropy(scores_BK.float(), targets_B).backward()
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return repeated_rate(step, batch_size, seconds)

    backbone = encoders.load("torchvision:resnet50", "bf16")
    head = Head.of(HeadSpec(kind="linear", inputs=backbone.shapes["embedding"][0], outputs=CLASSES))
    ours = rate(TransferNetwork(backbone, anatomy_of(backbone), CUT, head), lambda images: images)
    plain = encoders.load("torchvision:resnet50", "fp32")
    network = plain.module
    network.fc = nn.Linear(2048, CLASSES)
    for name, parameter in network.named_parameters():
        parameter.requires_grad = name.startswith(("layer4", "fc"))
    theirs = rate(network, lambda images: to_network_input(images, plain.recipe.preprocessing))
    return {"ours": ours, "plain_loop": theirs, "ratio": ratio(ours, theirs)}


def main() -> None:
    """Run the steps, each as long as there is time for it."""
    keep_freed_memory()  # as the command does
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one network and small sizes: does it run?")
    parser.add_argument("--batch-size", type=int, default=256 if has_gpu else 16)
    parser.add_argument("--seconds", type=float, default=2.0, help="least time of one measurement")
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, default=has_gpu)
    arguments = parser.parse_args()
    names, rows, lists = list(encoders.BACKBONES), 1_000_000 if has_gpu else 50_000, 4096 if has_gpu else 256
    if arguments.quick:
        names, rows, lists, arguments.seconds, arguments.batch_size = names[-1:], 5_000, 16, 0.1, 4
    steps: dict[str, Callable[[], Found]] = {
        "decode": lambda: decode_step(arguments.seconds),
        "decode by the device": lambda: device_decode_step(arguments.seconds),
        "faiss": lambda: faiss_step(rows, lists),
        "suffix": lambda: suffix_step(arguments.batch_size, arguments.seconds),
        **{f"encoder {name}": lambda name=name: encoder_step(name, arguments) for name in names},  # type: ignore[misc]
    }
    began, found = time.perf_counter(), {}
    for step, measure in steps.items():
        if time.perf_counter() - began > LIMIT_SECONDS:
            found[step] = {"left_out": f"no time left of {LIMIT_SECONDS:g} s"}
            continue
        before = time.perf_counter()
        found[step] = measure() | {"step_seconds": time.perf_counter() - before}
        print(step, found[step], flush=True)
    fastest = max((each["best_ours"] for each in found.values() if "best_ours" in each), default=None)
    decoded = found["decode"]["images_per_second"]["0.2 MP"]
    name = torch.cuda.get_device_name() if has_gpu else None
    summary = {"device": name, "decode_to_fastest_encoder": ratio(decoded, fastest)}
    finish(summary | found, [{"step": step, "seconds": each.get("step_seconds")} for step, each in found.items()])


if __name__ == "__main__":
    main()
