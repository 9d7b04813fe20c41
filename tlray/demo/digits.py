"""scikit-learn's 1,797 handwritten digits as PNG files in one folder a label, as a photo collection would lie in a lake."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from sklearn.datasets import load_digits

LEVELS = 16
"""The data set's greatest value (each pixel counts the set bits of a 4x4 block of the scan)."""

SIDE_PIXELS = 64
MARGIN_PIXELS = 8
"""Written larger than their 8 pixels, as a viewer shows them, with a margin that networks' centre crops may cut."""


def write_digits(folder: Path) -> int:
    """Write the digits as `<folder>/<label>/<number>.png`.

    Returns:
        How many there are.
    """
    digits = load_digits()
    for number, (image_HW, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        grey_HW = np.round(255 - image_HW * (255 / LEVELS)).astype(np.uint8)
        path = folder / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        digit = Image.fromarray(grey_HW).resize((SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.BICUBIC)
        ImageOps.expand(digit, MARGIN_PIXELS, fill=255).save(path)
    return len(digits.images)
