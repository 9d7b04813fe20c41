"""A repository of the hub with a model of open_clip, from a real server on loopback by huggingface_hub's own client."""

import threading
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest

from tests.models.libraries.huggingface.test_hub import COMMIT, NAME, Hub
from tests.models.libraries.openclip.test_openclip import resolve
from tests.models.libraries.openclip.tiny import save
from tlray.errors import BackboneError, WeightsError
from tlray.models.backbones.images import load_backbone
from tlray.models.encoder.encoder import Encoder
from tlray.recipe import golden_images


def test_a_repository_is_loaded_at_its_commit_with_its_tokeniser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save("siglip", tmp_path / "model")
    server = Hub({COMMIT: folder})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    try:
        from_hub, from_folder = resolve(f"hf-hub:{NAME}"), resolve(folder)
        assert from_hub.recipe.backbone == f"openclip:hf-hub:{NAME}"
        assert from_hub.recipe.weights == f"openclip:hf-hub:{NAME}@{COMMIT}"
        assert from_hub.recipe.weights_sha256 == from_folder.recipe.weights_sha256
        assert load_backbone(from_hub.recipe, Path).recipe == from_hub.recipe
        images_BHWC = golden_images(160, 160)
        one, other = (Encoder(found, device="cpu", batch_size=2).encode(images_BHWC) for found in (from_hub, from_folder))
        np.testing.assert_array_equal(one["embedding"], other["embedding"])
        texts = ["a red cat", "two dogs"]
        np.testing.assert_array_equal(from_hub.text_tower().encode(texts), from_folder.text_tower().encode(texts))
        with pytest.raises(BackboneError, match="openclip:hf-hub:org/other could not be had from the hub"):
            resolve("hf-hub:org/other")
    finally:
        server.shutdown()
        server.server_close()


def test_a_tag_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"openclip:RN50-quickgelu/openai could not be had from .*give a copy of the file"):
        resolve("RN50/openai")
