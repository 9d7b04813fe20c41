"""Decoding and resizing alone, from bytes in memory to 224 x 224 RGB pixels, by size of the photo and by decoder.

Beside images a second: how far the pixels are from those of our path in full, and what that does to embeddings.

Shape legend: B photos, H height, W width, C channels, D embedding length.
"""

import argparse
import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from tests.bench.harness import BACKBONE, WEIGHTS, finish, ratio, repeated_rate
from tests.bench.photos import photos
from tlray.config import RecipeConfig
from tlray.lake.image.decode import decode_image
from tlray.lake.image.resize import apply_preprocessing
from tlray.lake.storage.local_copy import local_copy
from tlray.models.backbones.images import resolve_backbone
from tlray.models.encoder.encoder import Encoder
from tlray.recipe import Precision, Preprocessing

try:
    from torchcodec import decoders as torchcodec
except ImportError:
    torchcodec = None

SIZES = {"0.2 MP": (512, 384), "0.8 MP": (1024, 768), "3 MP": (2048, 1536), "12 MP": (4000, 3000)}
PREPROCESSING = Preprocessing(
    resize=(256, 256), crop=(224, 224), interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)
SCALED = PREPROCESSING.model_copy(update={"scaled_decoding": True})
MAX_PIXELS = 2**28
REFERENCE = "tlray"

Decoder = Callable[[bytes], np.ndarray]


def with_tlray(data: bytes) -> np.ndarray:
    """Our one path, and all that we check."""
    return decode_image(data, PREPROCESSING, max_pixels=MAX_PIXELS).pixels_HWC


def with_scaled_decoding(data: bytes) -> np.ndarray:
    """The same with `preprocessing.scaled_decoding`."""
    return decode_image(data, SCALED, max_pixels=MAX_PIXELS).pixels_HWC


def with_pillow(data: bytes) -> np.ndarray:
    """Pillow's decoding, then our resize, as before plain JPEGs were decoded without it."""
    return apply_preprocessing(Image.open(io.BytesIO(data)).convert("RGB"), PREPROCESSING)


def with_torchcodec(data: bytes) -> np.ndarray:
    """torchcodec, then our resize; the tensor's memory is already in the order of rows, columns, channels."""
    return apply_preprocessing(torchcodec.decode_jpeg(data).permute(1, 2, 0).numpy(), PREPROCESSING)


def decoders() -> dict[str, Decoder]:
    """Those that are installed, ours first."""
    found: dict[str, Decoder] = {REFERENCE: with_tlray, "tlray scaled": with_scaled_decoding, "Pillow": with_pillow}
    if torchcodec is not None:
        found["torchcodec"] = with_torchcodec
    return found


def rate(decode: Decoder, datas: list[bytes], threads: int, seconds: float) -> float:
    """Images a second on some threads of one process."""
    with ThreadPoolExecutor(threads) as pool:
        return repeated_rate(lambda: list(pool.map(decode, datas)), len(datas), seconds)


def rates(
    decode_by_name: dict[str, Decoder], datas: list[bytes], arguments: argparse.Namespace
) -> dict[tuple[str, int], float]:
    """Median images a second by decoder and number of threads; they take turns."""
    cores = os.cpu_count() or 1
    samples: dict[tuple[str, int], list[float]] = {(name, threads): [] for name in decode_by_name for threads in (1, cores)}
    for _ in range(arguments.repetitions):
        for (name, threads), measured in samples.items():
            measured.append(rate(decode_by_name[name], datas, threads, arguments.seconds))
    return {key: median(measured) for key, measured in samples.items()}


def measure(label: str, arguments: argparse.Namespace, encode: Callable[[np.ndarray], np.ndarray]) -> list[dict[str, Any]]:
    """One row a decoder for photos of one size."""
    width, height = SIZES[label]
    datas = list(photos(arguments.photos, (width, height)))
    decode_by_name = decoders()
    speeds = rates(decode_by_name, datas, arguments)
    images = {name: np.stack([decode(data) for data in datas]) for name, decode in decode_by_name.items()}
    features = {name: encode(images[name]) for name in (REFERENCE, "tlray scaled")}
    rows = []
    for name, images_BHWC in images.items():
        levels_BHWC = np.abs(images_BHWC.astype(int) - images[REFERENCE])
        cosines_B = (features[name] * features[REFERENCE]).sum(axis=1) if name in features else None
        rows.append(
            {
                "size": label,
                "decoder": name,
                "kilobytes": sum(map(len, datas)) / len(datas) / 1e3,
                "images_per_second_one_thread": speeds[name, 1],
                "images_per_second_all_cores": speeds[name, os.cpu_count() or 1],
                "megapixels_per_second_one_thread": speeds[name, 1] * width * height / 1e6,
                "ratio_one_thread": ratio(speeds[name, 1], speeds[REFERENCE, 1]),
                "most_levels_off": int(levels_BHWC.max()),
                "mean_levels_off": float(levels_BHWC.mean()),
                "least_cosine": None if cosines_B is None else round(float(cosines_B.min()), 5),
                "mean_cosine": None if cosines_B is None else round(float(cosines_B.mean()), 5),
            }
        )
    return rows


def trained_encoder() -> Callable[[np.ndarray], np.ndarray]:
    """From images_BHWC to unit vectors_BD, at fp32."""
    config = RecipeConfig(
        backbone=BACKBONE, weights=WEIGHTS, normalize=True, precision=Precision(compute="fp32", storage="full")
    )
    encoder = Encoder(resolve_backbone(config, local_copy))
    return lambda images_BHWC: next(iter(encoder.encode(images_BHWC).values())).astype(np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few photos, one repetition of half a second")
    parser.add_argument("--photos", type=int, default=16, help="different photos of each size")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="least time of one repetition")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.photos, arguments.repetitions, arguments.seconds = 4, 1, 0.5
    encode = trained_encoder()
    rows = [row for label in SIZES for row in measure(label, arguments, encode)]
    finish({"rows": rows}, rows)


if __name__ == "__main__":
    main()
