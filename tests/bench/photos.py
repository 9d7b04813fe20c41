"""Natural JPEGs in any number and size, from scikit-learn's two sample photographs: the same ones for the same seed.

Each is a mosaic of tiles; a tile is a random crop of one of the photographs, flipped, resized a little and with its colours
jittered. So large pictures have as much detail a pixel as small ones, which an enlarged photograph would not have.
"""

import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

QUALITY = 90
TILE_SIZE = (500, 375)
CROP_FRACTION = (0.7, 1.0)
JITTER = (0.7, 1.3)


@cache
def _originals() -> list[Image.Image]:
    return [Image.fromarray(pixels_HWC) for pixels_HWC in load_sample_images().images]


def photo_bytes(seed: int, size: tuple[int, int] = TILE_SIZE) -> bytes:
    """One JPEG.

    Args:
        seed: of everything that is random in it.
        size: (width, height) in pixels.
    """
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", size)
    for top in range(0, size[1], TILE_SIZE[1]):
        for left in range(0, size[0], TILE_SIZE[0]):
            tile = (min(TILE_SIZE[0], size[0] - left), min(TILE_SIZE[1], size[1] - top))
            picture.paste(_tile(rng, tile), (left, top))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _tile(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    original = _originals()[rng.integers(len(_originals()))]
    fraction = rng.uniform(*CROP_FRACTION)
    width, height = int(original.width * fraction), int(original.height * fraction)
    left, top = rng.integers(original.width - width + 1), rng.integers(original.height - height + 1)
    tile = original.crop((left, top, left + width, top + height))
    tile = ImageOps.fit(ImageOps.mirror(tile) if rng.random() < 0.5 else tile, size, Image.Resampling.BICUBIC)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        tile = enhance(tile).enhance(rng.uniform(*JITTER))
    return tile


def photos(count: int, size: tuple[int, int] = TILE_SIZE, *, seed: int = 0) -> Iterator[bytes]:
    """Several JPEGs, all different."""
    for number in range(count):
        yield photo_bytes(seed * 1_000_003 + number, size)


def write_photos(folder: Path, count: int, size: tuple[int, int] = TILE_SIZE, *, seed: int = 0) -> Path:
    """`<folder>/photos/<number>.jpg`, as torchvision's `ImageFolder` expects pictures of one class to lie.

    Returns:
        The folder.
    """
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(photos(count, size, seed=seed)):
        (folder / "photos" / f"{number:06d}.jpg").write_bytes(data)
    return folder
