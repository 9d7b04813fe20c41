"""Photographs and commands for end-to-end tests: small pictures, a small network with seeded weights."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

RECIPE = ["--recipe.backbone", "timm:test_resnet", "--recipe.weights", "random:7", "--recipe.precision.compute", "fp32"]


def photo(seed: int, size: tuple[int, int] = (96, 64)) -> bytes:
    """A JPEG of smooth random content."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_photos(folder: Path, count: int, *, first: int = 0) -> list[Path]:
    """`<folder>/<cat or dog>/<number>.jpg`."""
    paths = []
    for number in range(first, first + count):
        path = folder / ("cat" if number % 2 else "dog") / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(number))
        paths.append(path)
    return paths


def tlray(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "tlray", *map(str, arguments)], capture_output=True, text=True, timeout=280, env=env, check=False
    )


def result_of(process: subprocess.CompletedProcess[str]) -> dict:
    """The JSON object of a command that must have succeeded."""
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def error_of(process: subprocess.CompletedProcess[str], exit_code: int = 2) -> str:
    """The error of a command that must have failed: one line, nothing on stdout."""
    assert process.returncode == exit_code, (process.returncode, process.stdout, process.stderr)
    assert not process.stdout
    lines = [line for line in process.stderr.splitlines() if line.startswith("tlray ")]
    assert len(lines) == 1 and "Traceback" not in process.stderr, process.stderr
    return lines[0]


def frame_of(table: str | Path, storage_options: dict[str, str] | None = None) -> pl.DataFrame:
    """All live rows, read by Polars."""
    return pl.scan_delta(str(table), storage_options=storage_options).collect().sort("uri")


def plain_embeddings(paths: list[Path], weights: dict[str, torch.Tensor]) -> np.ndarray:
    """What timm alone computes: its own transform and its own forward pass."""
    model = timm.create_model("test_resnet", num_classes=0).eval()
    model.load_state_dict({name: tensor for name, tensor in weights.items() if name in model.state_dict()})
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        return model(torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])).numpy()
