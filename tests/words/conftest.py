"""A trained network of two towers, a collection that it embedded, and an index of it."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.photos import result_of, tlray
from tests.words.pictures import PAIRS, picture
from tests.words.towers import train
from tlray.models.libraries import names

ROOT = Path(__file__).parents[2]
SEED = 1000
"""Of the collection's pictures, which no training has seen."""


@dataclass(frozen=True)
class Collection:
    """Where everything is: a picture of each pair as `pictures/<colour>/<name>.png`."""

    folder: Path

    @property
    def pictures(self) -> Path:
        return self.folder / "pictures"

    @property
    def index(self) -> Path:
        return self.folder / "index"

    @property
    def table(self) -> Path:
        return self.folder / "table"

    @property
    def weights(self) -> Path:
        return self.folder / "towers.safetensors"

    @property
    def recipe(self) -> list[str | Path]:
        """Flags of the network."""
        return ["--backbone", "towers:words", "--weights", self.weights, "--compute", "fp32"]

    def uri(self, colour: str, name: str) -> str:
        return (self.pictures / colour / f"{name}.png").as_uri()


@pytest.fixture(scope="session")
def towers_installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An installed package is a folder of metadata on the path, for new processes too."""
    folder = tmp_path_factory.mktemp("site") / "towers_of_others-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: towers-of-others\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[{names.ENTRY_POINTS}]\ntowers = tests.words.towers:Library")
    caches = (names.library_names, names.open_library)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder.parent)
        paths = [str(folder.parent), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        for cache in caches:
            cache.cache_clear()
        yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory, towers_installed: None) -> Collection:
    made = Collection(tmp_path_factory.mktemp("words"))
    if "PYTEST_XDIST_WORKER" in os.environ:  # whose folders have one parent for this run: who comes later need not train
        shared = tmp_path_factory.getbasetemp().parent / "towers.safetensors"
        if not shared.exists():
            train(made.weights)
            made.weights.replace(shared)
        shutil.copy(shared, made.weights)
    else:
        train(made.weights)
    for colour, name in PAIRS:
        path = made.pictures / colour / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(colour, name, SEED).save(path)
    result_of(tlray("extract", made.pictures, made.table, "--local", "--source.labels", "folder", *made.recipe))
    result_of(tlray("index", made.table, made.index))
    return made
