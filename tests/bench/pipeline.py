"""`make bench`: photos a second of `extract` against its limit and against other engines, on this machine.

The engines take turns, each in a process of its own, so that load that comes and goes falls on all of them. Ratios are of one
turn, and their medians count.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench.harness import BACKBONE, WEIGHTS, EngineError, Job, finish, medians, ratio, run_json
from tests.bench.photos import write_photos

OURS = ("tlray", "tlray_local")
ALONE = ("decode", "encode")
DOCUMENTED = ("dataloader", "ray_data", "daft")
SAME_ENCODER = tuple(f"{name}+encoder" for name in DOCUMENTED)
SAME_RESIZE = tuple(f"{name}+resize" for name in SAME_ENCODER)
PEERS = DOCUMENTED + SAME_ENCODER + SAME_RESIZE
MODULES = dict.fromkeys(ALONE + OURS, "tests.bench.ours") | dict.fromkeys(PEERS, "tests.bench.peers")

DOCUMENTED_PART = 8
"""The documented peers get every so many-th part of the photos: they take as much longer, and a steady rate needs no more."""

Samples = dict[str, list[dict[str, Any]]]


def limit(decode: float | None, encode: float | None, *, gpu: bool) -> float | None:
    """The most images a second that any engine could reach.

    Args:
        decode: images a second of decoding alone on all cores.
        encode: of the encoder alone, on all cores or the accelerator.
        gpu: the two run on different devices, so the slower one decides; otherwise they share the cores and an image
            costs the sum of both times.
    """
    if not decode or not encode:
        return None
    return min(decode, encode) if gpu else 1 / (1 / decode + 1 / encode)


def run_engines(arguments: argparse.Namespace, photos: Path, few_photos: Path) -> tuple[Samples, dict[str, str]]:
    """Measure all engines in turn.

    Returns:
        Measurements of each engine, and why those that failed did.
    """
    samples: Samples = {name: [] for name in arguments.engines}
    failures: dict[str, str] = {}
    for repetition in range(arguments.repetitions):
        for name in arguments.engines:
            if name in failures:
                continue
            with tempfile.TemporaryDirectory(prefix="tlray-bench-") as scratch:
                job = Job(
                    photos=few_photos if name in DOCUMENTED else photos,
                    scratch=Path(scratch),
                    backbone=arguments.backbone,
                    weights=arguments.weights,
                    compute=arguments.compute,
                    batch_size=arguments.batch_size,
                    seconds=arguments.seconds,
                )
                try:
                    samples[name].append(run_json(MODULES[name], name, *job.arguments()))
                except EngineError as error:
                    failures[name] = str(error)
                    samples[name] = []
            outcome = failures.get(name) or samples[name][-1]
            print(f"{repetition + 1}/{arguments.repetitions} {name}: {outcome}", file=sys.stderr, flush=True)
    return samples, failures


def ratios(rates: Mapping[str, float | None], *, gpu: bool) -> dict[str, float | None]:
    """Our steady rates over the limit and over the best peers, all of one turn."""

    def best(names: tuple[str, ...]) -> float | None:
        return max((rate for name in names if (rate := rates.get(name)) is not None), default=None)

    result: dict[str, float | None] = {}
    for name, prefix in zip(OURS, ("", "local_"), strict=True):
        ours = rates.get(name)
        result[f"{prefix}ratio_to_limit"] = ratio(ours, limit(rates.get("decode"), rates.get("encode"), gpu=gpu))
        result[f"{prefix}ratio_to_best_documented_peer"] = ratio(ours, best(DOCUMENTED))
        result[f"{prefix}ratio_to_best_peer_same_encoder"] = ratio(ours, best(SAME_ENCODER))
        result[f"{prefix}ratio_to_best_peer_same_encoder_and_resize"] = ratio(ours, best(SAME_RESIZE))
    return result


def summarize(samples: Samples, measured: dict[str, dict[str, Any]], *, gpu: bool) -> dict[str, Any]:
    """The benchmark's JSON object: medians of the turns' ratios, as the machine drifts between them, and of every rate."""
    turns = max(map(len, samples.values()))
    each = [
        ratios({name: runs[turn]["images_per_second"] for name, runs in samples.items() if turn < len(runs)}, gpu=gpu)
        for turn in range(turns)
    ]
    rates: dict[str, float | None] = {name: measurements["images_per_second"] for name, measurements in measured.items()}
    result: dict[str, Any] = medians({"ratios": each})["ratios"] | {"turns": each}
    result["images_per_second"] = rates | {"limit": limit(rates.get("decode"), rates.get("encode"), gpu=gpu)}
    for key in ("own_images_per_second", "write_and_commit_share"):
        result[key] = {name: measured[name][key] for name in OURS if name in measured}
    result["total_seconds"] = {name: measurements["total_seconds"] for name, measurements in measured.items()}
    return result


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, with what `--quick` stands for filled in."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few images, one repetition: does it run?")
    parser.add_argument("--images", type=int, help="photos of 500x375 pixels (2400); the documented peers get an eighth")
    parser.add_argument("--repetitions", type=int, help="turns of each engine (3)")
    parser.add_argument("--seconds", type=float, help="least time for decoding and for encoding alone (5)")
    parser.add_argument("--batch-size", type=int, default=32, help="of the peers; with a GPU take 256")
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--weights", default=WEIGHTS)
    parser.add_argument("--compute", default="bf16", choices=["fp32", "bf16", "fp16"], help="precision of our encoder")
    parser.add_argument("--engines", nargs="+", default=list(MODULES), choices=list(MODULES), metavar="NAME")
    arguments = parser.parse_args(argv)
    sizes = (
        {"images": 96, "repetitions": 1, "seconds": 1.0}
        if arguments.quick
        else {"images": 2400, "repetitions": 3, "seconds": 5.0}
    )
    for name, value in sizes.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory(prefix="tlray-bench-") as folder:
        photos = write_photos(Path(folder) / "all", arguments.images)
        few_photos = write_photos(Path(folder) / "few", -(-arguments.images // DOCUMENTED_PART))
        samples, failures = run_engines(arguments, photos, few_photos)
    measured = medians(samples)
    gpu = any(measurements.get("gpus") for measurements in measured.values())
    rows = [
        {
            "engine": name,
            "images/s steady": measured[name]["images_per_second"],
            "images/s by itself": measured[name].get("own_images_per_second"),
            "seconds in all": measured[name]["total_seconds"],
            "write + commit": measured[name].get("write_and_commit_share"),
            "bottleneck": measured[name].get("bottleneck"),
        }
        for name in measured
    ]
    result = summarize(samples, measured, gpu=gpu) | {"images": arguments.images, "repetitions": arguments.repetitions}
    finish(result | {"compute": arguments.compute, "gpu": gpu, "failures": failures}, rows)


if __name__ == "__main__":
    main()
