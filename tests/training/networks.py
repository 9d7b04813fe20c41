"""Small networks' trainings that several tests run."""

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from tests.photos import write_photos
from tlray.config import ExtractConfig, TrainConfig
from tlray.extraction.extract import extract
from tlray.lake.image.decode import decode_image
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import to_uri
from tlray.models.backbones.network_input import to_network_input
from tlray.recipe import Preprocessing

RECIPE = {
    "backbone": "timm:test_resnet",
    "weights": "random:7",
    "precision": {"compute": "fp32", "storage": "full"},
    "preprocessing": {"resize": 40, "crop": 32},
}
PHOTOS = 30
NETWORK = {"freeze": "layer2", "augment": [], "learning_rate": 0.002, "checkpoint_every": 1000}


def photos_in(folder: Path) -> Path:
    """Photos of two labels, and beside their folder a list of these and of splits, which are the same wherever it is."""
    write_photos(folder, PHOTOS)
    names = sorted(path.relative_to(folder.parent).as_posix() for path in folder.rglob("*.jpg"))
    sides = ["train", "train", "train", "validation", "test"]
    lines = [f"{name},{name.split('/')[-2]},{sides[at % len(sides)]}\n" for at, name in enumerate(names)]
    labels_of(folder).write_text("uri,label,split\n" + "".join(lines), encoding="utf-8")
    return folder


def labels_of(photos: Path) -> Path:
    return photos.parent / f"{photos.name}.csv"


def training(photos: Path, out: Path | str, *, network: dict[str, Any] | None = None, **changes: Any) -> TrainConfig:
    """A training from images in this process, but for the changes."""
    fields = {
        "source": {"uri": str(photos), "labels": "folder"},
        "recipe": RECIPE,
        "out": str(out),
        "labels": str(labels_of(photos)),
        "split": {"column": "split"},
        "epochs": 2,
        "batch_size": 8,
        "local": True,
        "lease_seconds": 2,
        "network": NETWORK | (network or {}),
    }
    return TrainConfig.model_validate(fields | changes)


def extract_activations(photos: Path, table: Path, **changes: Any) -> Path:
    """A table of what `layer2` gives."""
    recipe = RECIPE | {"taps": ["layer2"], "pool": "none"} | changes
    source = {"uri": str(photos), "labels": "folder"}
    extract(ExtractConfig.model_validate({"source": source, "recipe": recipe, "table": str(table), "local": True}))
    return table


def tensors_of(out: Path | str) -> dict[str, Tensor]:
    """All tensors of a model folder."""
    uri = to_uri(str(out))
    network, head = (
        safetensors.torch.load(open_store(uri).read(f"{uri}/{name}.safetensors").data) for name in ("network", "head")
    )
    return network | {f"head/{name}": tensor for name, tensor in head.items()}


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def pixels(paths: list[Path], preprocessing: Preprocessing) -> Tensor:
    """Images as the network takes them."""
    decoded = [decode_image(path.read_bytes(), preprocessing, max_pixels=10**6).pixels_HWC for path in paths]
    return to_network_input(torch.from_numpy(np.stack(decoded)), preprocessing)
