"""An encoder that compiles itself while it works."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tlray.config import RecipeConfig
from tlray.extraction.worker import tuning_encoder as tuning
from tlray.extraction.worker.tuning_encoder import TuningEncoder
from tlray.models.backbones.images import resolve_backbone
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.engines.compiled import CompiledCache
from tlray.models.encoder.golden import make_recipe_file
from tlray.models.encoder.network.network import Network
from tlray.models.process.device import choose_device
from tlray.recipe import RecipeFile


@pytest.fixture(scope="module")
def file() -> RecipeFile:
    return make_recipe_file(resolve_backbone(RecipeConfig(backbone="timm:test_resnet", weights="random:0"), Path))


@pytest.fixture(name="images_BHWC")
def noise(file: RecipeFile) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, *file.recipe.preprocessing.crop, 3), np.uint8)


@pytest.fixture
def make(file: RecipeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], TuningEncoder]:
    monkeypatch.setattr(tuning, "CompiledCache", lambda *arguments: CompiledCache(*arguments, tmp_path))
    return lambda images: TuningEncoder(file, where="the test", images=images)


def test_little_work_is_not_compiled(make: Callable[[int], TuningEncoder], images_BHWC: np.ndarray, tmp_path: Path) -> None:
    encoder = make(200)
    for _ in range(3):
        encoder.encode_timed(images_BHWC)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_much_work_is_compiled_once_and_gives_the_same(
    make: Callable[[int], TuningEncoder], file: RecipeFile, images_BHWC: np.ndarray, tmp_path: Path
) -> None:
    encoder = make(10**9)
    first, _ = encoder.encode_timed(images_BHWC)
    assert not list(tmp_path.glob("*.pt2"))  # it has not measured itself yet
    second, _ = encoder.encode_timed(images_BHWC)
    (artefact,) = tmp_path.glob("*.pt2")
    made_at = artefact.stat().st_mtime_ns
    ours_BD, theirs_BD = second["embedding"], first["embedding"]
    cosines_B = (ours_BD * theirs_BD).sum(1) / np.linalg.norm(ours_BD, axis=1) / np.linalg.norm(theirs_BD, axis=1)
    assert cosines_B.min() > 0.999
    assert (ours_BD != theirs_BD).any()  # other code, other roundings
    third, _ = make(1).encode_timed(images_BHWC)  # as the next worker has it
    np.testing.assert_array_equal(third["embedding"], ours_BD)
    assert artefact.stat().st_mtime_ns == made_at


@pytest.mark.slow
def test_compiled_code_that_computes_something_else_is_dropped(
    make: Callable[[int], TuningEncoder], file: RecipeFile, images_BHWC: np.ndarray, tmp_path: Path
) -> None:
    other = resolve_backbone(RecipeConfig(backbone="timm:test_resnet", weights="random:1"), Path)
    cache = CompiledCache(file, choose_device("auto"), tmp_path)
    assert cache.compile(Network.of(other, choose_device("auto"), 0)) == "made"
    encoder = make(1)
    assert not cache.path.exists()
    same = resolve_backbone(RecipeConfig(backbone="timm:test_resnet", weights="random:0"), Path)
    by_itself = Encoder(same, exact_below=file.exact_below).encode(images_BHWC)
    np.testing.assert_array_equal(encoder.encode_timed(images_BHWC)[0]["embedding"], by_itself["embedding"])
