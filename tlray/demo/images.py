"""Images that scikit-learn carries, a folder for each label: 1,797 handwritten digits, and views of two photographs."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from sklearn.datasets import load_digits, load_sample_images

LEVELS = 16
"""The data set's greatest value (each pixel counts the set bits of a 4x4 block of the scan)."""

SIDE_PIXELS = 64
MARGIN_PIXELS = 8
"""Written larger than their 8 pixels, as a viewer shows them, with a margin that networks' centre crops may cut."""

VIEWS = 60
VIEW_FRACTION = (0.4, 0.7)
VIEW_PIXELS = 256
QUALITY = 90


def write_digits(folder: Path) -> int:
    """Write scikit-learn's digits as images, `<folder>/<label>/<number>.png`.

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


def write_views(folder: Path) -> int:
    """Write views of the two photographs as `<folder>/china/<number>.jpg` and `<folder>/flower/<number>.jpg`.

    A view is a random square of the photograph, of 0.4 to 0.7 of its height, mirrored half of the time, the same each time.

    Returns:
        How many there are.
    """
    photographs = load_sample_images()
    generator = np.random.default_rng(0)
    for name, pixels_HWC in zip(photographs.filenames, photographs.images, strict=True):
        photograph = Image.fromarray(pixels_HWC)
        for number in range(VIEWS):
            side = int(photograph.height * generator.uniform(*VIEW_FRACTION))
            left = int(generator.integers(photograph.width - side + 1))
            top = int(generator.integers(photograph.height - side + 1))
            view = photograph.crop((left, top, left + side, top + side)).resize((VIEW_PIXELS, VIEW_PIXELS))
            path = folder / Path(name).stem / f"{number:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            (ImageOps.mirror(view) if generator.random() < 0.5 else view).save(path, quality=QUALITY)
    return VIEWS * len(photographs.images)
