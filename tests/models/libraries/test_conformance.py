"""Every library passes the conformance suite: torchvision, timm, and one of a package that is none of tlray's."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image

from tests.models.conformance import LibraryConformance
from tests.models.libraries.numbers_library import GRID, Colours
from tlray.errors import BackboneError
from tlray.models.backbones.images import Backbone
from tlray.models.libraries import names

ROOT = Path(__file__).parents[3]


class TestTorchvision(LibraryConformance):
    backbone = "torchvision:squeezenet1_1"
    taps: ClassVar = {"classifier.1:input": (512,), "features.3": (128,), "features.8": (256,)}

    def weights(self, folder: Path) -> str:
        torch.manual_seed(0)
        path = folder / "squeezenet1_1-b8a52dc0.pth"
        torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
        return str(path)

    def prepared(self, image: Image.Image, backbone: Backbone) -> np.ndarray:
        return torchvision.models.SqueezeNet1_1_Weights.DEFAULT.transforms()(image).numpy()

    def embedded(self, inputs_BCHW: torch.Tensor, backbone: Backbone) -> np.ndarray:
        with torch.no_grad():
            return backbone.module.features(inputs_BCHW).mean((2, 3)).numpy()


class TestTimm(LibraryConformance):
    backbone = "timm:test_vit"
    taps: ClassVar = {"head:input": (64,), "blocks.0": (64,), "patch_embed": (64,)}

    def prepared(self, image: Image.Image, backbone: Backbone) -> np.ndarray:
        return timm.data.create_transform(**timm.data.resolve_model_data_config(backbone.module))(image).numpy()

    def embedded(self, inputs_BCHW: torch.Tensor, backbone: Backbone) -> np.ndarray:
        module = backbone.module
        with torch.no_grad():
            return module.forward_head(module.forward_features(inputs_BCHW), pre_logits=True).numpy()


class TestTimmOfAFile(TestTimm):
    backbone = "timm:test_resnet"
    taps: ClassVar = {"global_pool.pool": (96,), "layer1": (32,), "layer3": (192,)}

    def weights(self, folder: Path) -> str:
        torch.manual_seed(0)
        state = {f"backbone.{key}": value for key, value in timm.create_model("test_resnet").state_dict().items()}
        safetensors.torch.save_file(state, folder / "w.safetensors")
        return str(folder / "w.safetensors")


class TestAPackageOfOthers(LibraryConformance):
    backbone = "numbers:colours"
    taps: ClassVar = {"dense": (6,), "fields/mean:0": (3,)}

    @pytest.fixture(autouse=True)
    def installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """An installed package is a folder of metadata on the path, for new processes too."""
        folder = tmp_path / "site" / "numbers_of_others-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: numbers-of-others\nVersion: 1.0\n")
        points = ("numbers = tests.models.libraries.numbers_library:Numbers", "broken = no_such_module:Library")
        (folder / "entry_points.txt").write_text("\n".join((f"[{names.ENTRY_POINTS}]", *points)))
        monkeypatch.syspath_prepend(folder.parent)
        paths = [str(folder.parent), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
        names.library_names.cache_clear()
        names.open_library.cache_clear()
        yield
        names.library_names.cache_clear()
        names.open_library.cache_clear()

    def weights(self, folder: Path) -> str:
        path = folder / "matrix.npy"
        np.save(path, np.random.default_rng(7).standard_normal((3 * GRID * GRID, 6), np.float32))
        return str(path)

    def prepared(self, image: Image.Image, backbone: Backbone) -> np.ndarray:
        """Keras' mode `caffe` on a picture that Pillow resizes."""
        pixels_HWC = np.asarray(image.resize((32, 32), Image.Resampling.BOX), np.float32)
        return (pixels_HWC[..., ::-1] - np.array([103.939, 116.779, 123.68], np.float32)).transpose(2, 0, 1)

    def embedded(self, inputs_BCHW: torch.Tensor, backbone: Backbone) -> np.ndarray:
        assert isinstance(backbone.module, Colours)
        means = torch.nn.functional.adaptive_avg_pool2d(inputs_BCHW, GRID).flatten(1)
        return (means.double() @ torch.from_numpy(backbone.module.matrix).double()).float().numpy()

    def test_a_library_that_cannot_be_imported_says_so(self) -> None:
        assert names.library_names()[:2] == ("torchvision", "timm") and "broken" in names.library_names()
        with pytest.raises(BackboneError, match="'broken' \\(no_such_module:Library\\) cannot be imported"):
            names.open_library("broken")
