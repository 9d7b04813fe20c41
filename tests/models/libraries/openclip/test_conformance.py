"""open_clip's models pass the conformance suite: a transformer of its own, and a trunk of timm's."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from tests.models.conformance import LibraryConformance
from tests.models.libraries.openclip.tiny import CONFIGS, save
from tlray.models.backbones.images import Backbone
from tlray.models.libraries.openclip.source import name_of


class FromAFolder(LibraryConformance):
    kind: ClassVar[str]
    folder: ClassVar[Path]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def folders(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        cls.folder = save(cls.kind, tmp_path_factory.mktemp(cls.kind))
        cls.other_weights = str(save(cls.kind, tmp_path_factory.mktemp(cls.kind), seed=1))
        return

    def weights(self, folder: Path) -> str:
        return str(self.folder)

    def prepared(self, image: Image.Image, backbone: Backbone) -> np.ndarray:
        return open_clip.create_model_and_transforms(f"local-dir:{self.folder}")[2](image).numpy()

    def embedded(self, inputs_BCHW: torch.Tensor, backbone: Backbone) -> np.ndarray:
        with torch.no_grad():
            return open_clip.create_model(f"local-dir:{self.folder}").eval().encode_image(inputs_BCHW).numpy()


class TestViT(FromAFolder):
    kind = "vit"
    backbone = f"openclip:{name_of(CONFIGS['vit'])}"
    taps: ClassVar = {"image_embeds": (24,), "visual.transformer.resblocks.0": (64,), "visual.conv1": (64,)}


class TestSigLip(FromAFolder):
    kind = "siglip"
    backbone = f"openclip:{name_of(CONFIGS['siglip'])}"
    taps: ClassVar = {"image_embeds": (64,), "visual.trunk.blocks.0": (64,), "visual.trunk.patch_embed": (64,)}
