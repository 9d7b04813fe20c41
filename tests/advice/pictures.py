"""Small labelled pictures for tests of advice: classes that any network can tell, and labels that mean nothing."""

from pathlib import Path

import numpy as np
from PIL import Image

CANDIDATES = ("timm:test_resnet@random:1", "timm:test_efficientnet@random:2")
SIZE = {"resize": 32, "crop": 32}


def write_stripes(folder: Path, per_class: int, *, classes: int = 3, seed: int = 0) -> None:
    """Stripes of another direction and colour for each class, with noise: `<folder>/<kind-n>/<number>.png`."""
    generator = np.random.default_rng(seed)
    y_HW, x_HW = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    for label in range(classes):
        angle = np.pi * label / classes
        for number in range(per_class):
            phase = generator.uniform(0, 6)
            wave_HW = 0.5 + 0.5 * np.sin(0.9 * (x_HW * np.cos(angle) + y_HW * np.sin(angle)) + phase)
            pixels_HWC = np.repeat(wave_HW[:, :, None], 3, axis=2) * (0.4 + 0.6 * np.eye(3)[label % 3])
            pixels_HWC += generator.normal(0, 0.08, pixels_HWC.shape)
            path = folder / f"kind-{label}" / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 * pixels_HWC.clip(0, 1)).astype(np.uint8)).save(path)


def write_shuffled(folder: Path, per_class: int, *, classes: int, seed: int) -> None:
    """The same stripes, each in a folder that was drawn for it."""
    from_folder = folder.with_name(folder.name + "-right")
    write_stripes(from_folder, per_class, classes=classes, seed=seed)
    paths = sorted(from_folder.rglob("*.png"))
    labels = np.random.default_rng(seed).permutation(np.arange(len(paths)) % classes)
    for number, (path, label) in enumerate(zip(paths, labels.tolist(), strict=True)):
        target = folder / f"kind-{label}" / f"{number:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
