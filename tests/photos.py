"""Photographs and commands for end-to-end tests: small pictures, a small network with seeded weights."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from tlray.cli import main

RECIPE = ["--recipe.backbone", "timm:test_resnet", "--recipe.weights", "random:7", "--recipe.precision.compute", "fp32"]
SHORT_LEASE = ["--lease-seconds", "2"]
"""For runs that are killed: how long the next one waits."""


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


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


def tlray(*arguments: str | Path) -> Outcome:
    """Run a command in this process, as a user's shell would see it."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = main([str(argument) for argument in arguments])
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


def start_tlray(*arguments: str | Path) -> subprocess.Popen[str]:
    """Run a command in a process of its own, as a user does."""
    command = [sys.executable, "-m", "tlray", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result_of(process: Outcome) -> dict:
    """The JSON object of a command that must have succeeded."""
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def error_of(process: Outcome, exit_code: int = 2) -> str:
    """The error of a command that must have failed: one line, nothing on stdout."""
    assert process.returncode == exit_code, (process.returncode, process.stdout, process.stderr)
    assert not process.stdout
    lines = complaints(process.stderr)
    assert len(lines) == 1 and "Traceback" not in process.stderr, process.stderr
    return lines[0]


def complaints(stderr: str) -> list[str]:
    """The lines with which commands ended that failed, without their times."""
    return re.findall(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (tlray .*)$", stderr, re.MULTILINE)


def frame_of(table: str | Path, storage_options: dict[str, str] | None = None) -> pl.DataFrame:
    """All live rows, read by Polars."""
    return pl.scan_delta(str(table), storage_options=storage_options).collect().sort("uri")


def s3_options() -> dict[str, str]:
    """What Polars needs to read from the S3 server that the environment names."""
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_endpoint_url", "aws_region")
    return {name: os.environ[name.upper()] for name in names} | {"aws_allow_http": "true"}


def plain_embeddings(paths: list[Path], weights: dict[str, torch.Tensor]) -> np.ndarray:
    """What timm alone computes: its own transform and its own forward pass."""
    model = timm.create_model("test_resnet", num_classes=0).eval()
    model.load_state_dict({name: tensor for name, tensor in weights.items() if name in model.state_dict()})
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        return model(torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])).numpy()
