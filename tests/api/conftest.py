"""A folder of photos, and what is made of it by Python alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tlray
from tests.photos import write_photos

RECIPE: dict[str, Any] = {"backbone": "timm:test_resnet", "weights": "random:7", "compute": "fp32"}


@dataclass(frozen=True)
class Made:
    """Where everything is."""

    photos: list[Path]
    folder: Path
    results: dict[str, Any]

    def __getattr__(self, name: str) -> str:
        return str(self.folder / name)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("api")
    photos = write_photos(folder / "photos", 24)
    (folder / "photos" / "cat" / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    results = {
        "extract": tlray.extract(
            folder / "photos", folder / "table", labels="folder", local=True, max_failed_fraction=0.1, **RECIPE
        ),
        "index": tlray.build_index(folder / "table", folder / "index"),
        "train": tlray.train(folder / "table", folder / "model", epochs=20),
        "predict": tlray.predict(
            folder / "photos", folder / "predictions", folder / "model", local=True, max_failed_fraction=0.1, top_k=2
        ),
    }
    return Made(photos, folder, results)
