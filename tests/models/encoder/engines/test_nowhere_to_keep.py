"""Compiled networks where nothing can be kept: the home folder of a container is often nobody's to write to or to look into."""

from pathlib import Path

import pytest
import torch

from tlray.config import RecipeConfig
from tlray.models.backbones.images import resolve_backbone
from tlray.models.encoder.engines.compiled import CompiledCache
from tlray.models.encoder.golden import make_recipe_file
from tlray.models.encoder.network.network import Network
from tlray.recipe import Precision

CPU = torch.device("cpu")


def test_it_stays_uncompiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    config = RecipeConfig(backbone="timm:test_resnet", weights="random:0", precision=Precision(compute="fp32"))
    backbone = resolve_backbone(config, Path)
    (tmp_path / "home").write_text("no folder")
    cache = CompiledCache(make_recipe_file(backbone), CPU, tmp_path / "home" / ".cache")
    assert cache.load() is None
    assert cache.compile(Network.of(backbone, CPU, 0)) == "failed"
    assert "stays uncompiled" in caplog.text

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", refuse)
    assert cache.load() is None
