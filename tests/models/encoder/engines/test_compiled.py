"""Compiled encoders against the library's own forward pass, and the cache that keeps them."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tlray.config import RecipeConfig
from tlray.models.backbones.images import Backbone, resolve_backbone
from tlray.models.backbones.network_input import to_network_input
from tlray.models.encoder.engines.compiled import COMPILE_SECONDS, CompiledCache, pays
from tlray.models.encoder.golden import make_recipe_file
from tlray.models.encoder.network.network import Network
from tlray.recipe import Precision, RecipeFile, golden_images

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    config = RecipeConfig(backbone="timm:test_resnet", weights="random:0", precision=Precision(compute="fp32"))
    return resolve_backbone(config, Path)


@pytest.fixture(scope="module")
def cache(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> CompiledCache:
    cache = CompiledCache(make_recipe_file(backbone), CPU, tmp_path_factory.mktemp("compiled"))
    assert cache.load() is None
    assert cache.compile(Network.of(backbone, CPU, 0)) == "made"
    return cache


@pytest.mark.slow
def test_compiled_code_equals_the_library(cache: CompiledCache, backbone: Backbone) -> None:
    crop = backbone.recipe.preprocessing.crop
    images_BHWC = np.concatenate([golden_images(*crop), golden_images(*crop)[::-1]])[:5]  # no multiple of any batch
    with torch.no_grad():
        inputs_BCHW = to_network_input(torch.from_numpy(images_BHWC), backbone.recipe.preprocessing)
        expected_BD = backbone.module.forward_head(backbone.module.forward_features(inputs_BCHW), pre_logits=True).numpy()
    encoder = cache.load()
    assert encoder is not None
    np.testing.assert_allclose(encoder.encode(images_BHWC)["embedding"], expected_BD, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_another_process_loads_it_without_the_network(cache: CompiledCache, backbone: Backbone, tmp_path: Path) -> None:
    """Neither timm nor the weights: a second worker starts in a fraction of the time."""
    (tmp_path / "recipe.json").write_bytes(make_recipe_file(backbone).to_json())
    code = """
import sys
from pathlib import Path
import torch
from tlray.models.encoder.engines.compiled import CompiledCache
from tlray.recipe import RecipeFile, check_golden, golden_images
file = RecipeFile.from_json(Path(sys.argv[1]).read_bytes(), "recipe.json")
encoder = CompiledCache(file, torch.device("cpu"), Path(sys.argv[2])).load()
check_golden(file, encoder.encode(golden_images(*file.recipe.preprocessing.crop)), where="another process")
"""
    arguments = [sys.executable, "-c", code, str(tmp_path / "recipe.json"), str(cache.path.parent)]
    subprocess.run(arguments, check=True, capture_output=True, text=True)


@pytest.mark.slow
def test_what_cannot_be_loaded_is_forgotten(cache: CompiledCache, backbone: Backbone, tmp_path: Path) -> None:
    other = CompiledCache(make_recipe_file(backbone), CPU, tmp_path)
    other.path.write_bytes(cache.path.read_bytes()[:1000])
    assert other.load() is None
    assert not other.path.exists()


class Untraceable(nn.Module):
    """What it does depends on the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(images_BCHW.mean((2, 3)))
        return out if out.sum().item() > 0 else -out


def test_a_network_that_cannot_be_compiled(backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = backbone.recipe.model_copy(update={"taps": ("layer",)})
    odd = Backbone(recipe, Untraceable().eval(), {"embedding": (3,)})
    cache = CompiledCache(make_recipe_file(odd), CPU, tmp_path)
    with caplog.at_level(logging.WARNING):
        assert cache.compile(Network.of(odd, CPU, 0)) == "failed"
    assert "stays uncompiled" in caplog.text
    assert not cache.path.exists()


@pytest.mark.slow
def test_a_machine_without_a_compiler_says_so(backbone: Backbone, tmp_path: Path) -> None:
    """And goes on without."""
    code = """
import logging, sys
from pathlib import Path
import torch
from tlray.config import RecipeConfig
from tlray.models.backbones.images import resolve_backbone
from tlray.models.encoder.engines.compiled import CompiledCache
from tlray.models.encoder.golden import make_recipe_file
from tlray.models.encoder.network.network import Network
logging.basicConfig(level=logging.WARNING)
backbone = resolve_backbone(RecipeConfig(backbone="timm:test_resnet", weights="random:0"), Path)
cache = CompiledCache(make_recipe_file(backbone), torch.device("cpu"), Path(sys.argv[1]))
print(cache.compile(Network.of(backbone, torch.device("cpu"), 0)))
"""
    environment = os.environ | {"PATH": str(tmp_path)}
    arguments = [sys.executable, "-c", code, str(tmp_path / "cache")]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.stdout == "failed\n", done.stderr
    assert "timm:test_resnet stays uncompiled" in done.stderr
    assert "compiler" in done.stderr


def test_only_one_process_compiles(backbone: Backbone, tmp_path: Path) -> None:
    cache = CompiledCache(make_recipe_file(backbone), CPU, tmp_path)
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    arguments = [sys.executable, "-c", code, str(cache.path.with_suffix(".lock"))]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert cache.compile(Network.of(backbone, CPU, 0)) == "busy"
        holder.communicate("\n")


def test_the_name_says_all_that_the_code_depends_on(backbone: Backbone, tmp_path: Path) -> None:
    file = make_recipe_file(backbone)
    normalized = backbone.recipe.model_copy(update={"normalize": True})
    other = RecipeFile.model_validate(file.model_dump() | {"recipe": normalized, "recipe_id": normalized.recipe_id})
    names = {
        CompiledCache(file, CPU, tmp_path).path,
        CompiledCache(other, CPU, tmp_path).path,
        CompiledCache(file.model_copy(update={"exact_below": 64}), CPU, tmp_path).path,
    }
    assert len(names) == 3
    assert CompiledCache(file, CPU, tmp_path).path in names


@pytest.mark.parametrize(("images", "seconds", "expected"), [(100, 0.01, False), (10**6, 0.01, True), (10**6, 1e-5, False)])
def test_compiling_pays_for_long_work_only(images: int, seconds: float, expected: bool) -> None:
    assert pays(images, seconds) is expected
    assert images * seconds > COMPILE_SECONDS or not expected
