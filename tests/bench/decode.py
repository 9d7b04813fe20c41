"""Decoding and resizing alone, from bytes in memory to 224 x 224 RGB pixels, by size of the photo and by decoder."""

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

from tests.bench.harness import finish, repeated_rate
from tests.bench.photos import photos
from tlray.lake.images import decode_image
from tlray.recipe import Preprocessing

SIZES = {"0.2 MP": (512, 384), "0.8 MP": (1024, 768), "3 MP": (2048, 1536), "12 MP": (4000, 3000)}
PREPROCESSING = Preprocessing(
    resize=(256, 256), crop=(224, 224), interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)
MAX_PIXELS = 2**28


def with_pillow(data: bytes) -> object:
    """Our one path."""
    return decode_image(data, PREPROCESSING, max_pixels=MAX_PIXELS)


DECODERS: dict[str, Callable[[bytes], object]] = {"pillow": with_pillow}


def rate(decode: Callable[[bytes], object], datas: list[bytes], threads: int, seconds: float) -> float:
    """Images a second on some threads of one process."""
    with ThreadPoolExecutor(threads) as pool:
        return repeated_rate(lambda: list(pool.map(decode, datas)), len(datas), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few photos, one repetition of half a second")
    parser.add_argument("--photos", type=int, default=16, help="different photos of each size")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="least time of one repetition")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.photos, arguments.repetitions, arguments.seconds = 4, 1, 0.5
    cores = os.cpu_count() or 1
    rows: list[dict[str, Any]] = []
    for label, (width, height) in SIZES.items():
        datas = list(photos(arguments.photos, (width, height)))
        samples: dict[tuple[str, int], list[float]] = {(name, count): [] for name in DECODERS for count in (1, cores)}
        for _ in range(arguments.repetitions):
            for name, count in samples:
                samples[name, count].append(rate(DECODERS[name], datas, count, arguments.seconds))
        for name in DECODERS:
            one, all_cores = median(samples[name, 1]), median(samples[name, cores])
            rows.append(
                {
                    "size": label,
                    "decoder": name,
                    "kilobytes": sum(map(len, datas)) / len(datas) / 1e3,
                    "images_per_second_one_thread": one,
                    "megapixels_per_second_one_thread": one * width * height / 1e6,
                    "images_per_second_all_cores": all_cores,
                }
            )
    finish({"rows": rows}, rows)


if __name__ == "__main__":
    main()
