"""Engines beside torch, one after the other, and a network that each of them has converted."""

from pathlib import Path

import pytest

from tests.models.encoder.engines.opened import opened, resolve
from tlray.models.backbones.images import Backbone

RUNTIMES = {"openvino": "openvino.model", "onnxruntime": "onnxruntime.runtime"}


@pytest.fixture(scope="module", params=RUNTIMES)
def engine(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(f"tlray.models.encoder.engines.{RUNTIMES[request.param]}", exc_type=ImportError)
    return request.param


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return resolve("timm:test_resnet")


@pytest.fixture(scope="module")
def folder(backbone: Backbone, engine: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the backbone converted in it."""
    folder = tmp_path_factory.mktemp(engine)
    assert opened(backbone, folder, engine).engine == engine
    return folder
