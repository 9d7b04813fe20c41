"""transformers' networks pass the conformance suite: one with a class token, one of maps, one of two towers."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from tests.models.conformance import LibraryConformance
from tests.models.libraries.huggingface.tiny import save
from tlray.models.backbones.images import Backbone


class FromAFolder(LibraryConformance):
    folder: ClassVar[Path]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def folders(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        kind = cls.backbone.removeprefix("hf:")
        cls.folder = save(kind, tmp_path_factory.mktemp(kind))
        cls.other_weights = str(save(kind, tmp_path_factory.mktemp(kind), seed=1))
        return

    def weights(self, folder: Path) -> str:
        return str(self.folder)

    def prepared(self, image: Image.Image, backbone: Backbone) -> np.ndarray:
        processor = AutoImageProcessor.from_pretrained(self.folder)
        return processor(image, return_tensors="pt")["pixel_values"][0].numpy()

    def embedded(self, inputs_BCHW: torch.Tensor, backbone: Backbone) -> np.ndarray:
        with torch.no_grad():
            return AutoModel.from_pretrained(self.folder).eval()(pixel_values=inputs_BCHW).pooler_output.numpy()


class TestDinov2(FromAFolder):
    backbone = "hf:dinov2"
    taps: ClassVar = {"pooler_output": (32,), "last_hidden_state": (32,), "hidden_states.1": (32,), "model.embeddings": (32,)}


class TestConvNext(FromAFolder):
    backbone = "hf:convnext"
    taps: ClassVar = {"pooler_output": (32,), "hidden_states.1": (8,), "model.encoder.stages.2": (24,)}


class TestClip(FromAFolder):
    backbone = "hf:clip"
    taps: ClassVar = {"image_embeds": (24,), "last_hidden_state": (32,), "cls_token": (32,)}

    def embedded(self, inputs_BCHW: torch.Tensor, backbone: Backbone) -> np.ndarray:
        model = AutoModel.from_pretrained(self.folder).eval()
        with torch.no_grad():
            return model.visual_projection(model.vision_model(pixel_values=inputs_BCHW).pooler_output).numpy()
