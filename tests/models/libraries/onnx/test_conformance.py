"""ONNX files pass the conformance suite, against torch with the same weights."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from tests.models.conformance import LibraryConformance
from tests.models.libraries.onnx.networks import PREPROCESSING, SIDE, by_torch, save
from tlray.models.backbones.images import Backbone


class TestOnnx(LibraryConformance):
    backbone = "onnx:file"
    taps: ClassVar = {"flat": (16,), "relu1": (8,), "relu2": (16,)}

    @pytest.fixture(autouse=True)
    def another_file(self, tmp_path: Path) -> None:
        self.other_weights = str(save(tmp_path / "other.onnx", seed=1))  # type: ignore[misc]

    def weights(self, folder: Path) -> str:
        return str(save(folder / "network.onnx"))

    def prepared(self, image: Image.Image, backbone: Backbone) -> np.ndarray:
        values = transforms.Normalize(PREPROCESSING["mean"], PREPROCESSING["std"])
        steps = [transforms.Resize(40), transforms.CenterCrop(SIDE), transforms.ToTensor(), values]
        return transforms.Compose(steps)(image).numpy()

    def embedded(self, inputs_BCHW: torch.Tensor, backbone: Backbone) -> np.ndarray:
        return by_torch(inputs_BCHW)["flat"]
