"""The classifier that a network came with: its scores through the encoder against its own forward pass, and its classes."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision

from tlray.config import RecipeConfig
from tlray.errors import ConfigError
from tlray.models.backbones.classifier import own_classifier
from tlray.models.backbones.images import Backbone, resolve_backbone
from tlray.models.backbones.network_input import to_network_input
from tlray.models.encoder.encoder import Encoder
from tlray.models.libraries.timm import Timm
from tlray.models.libraries.torchvision import Torchvision
from tlray.recipe import Precision, golden_images


def resolve(backbone: str, weights: str = "random:0", **recipe: object) -> Backbone:
    config = RecipeConfig(backbone=backbone, weights=weights, precision=Precision(compute="fp32"), **recipe)
    return resolve_backbone(config, Path)


@pytest.mark.parametrize("keep_embeddings", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "torchvision:squeezenet1_1",  # its scores are a pooled map
        "torchvision:mobilenet_v3_small",
        "timm:vit_tiny_patch16_224",
        "timm:test_resnet",
    ],
)
def test_scores_are_those_of_the_whole_network(name: str, keep_embeddings: bool) -> None:
    backbone = resolve(name)
    own = own_classifier(backbone, keep_embeddings=keep_embeddings)
    images_BHWC = golden_images(*backbone.recipe.preprocessing.crop)
    features = Encoder(own.backbone, device="cpu").encode(images_BHWC)
    with torch.inference_mode():
        expected_BK = backbone.module(to_network_input(torch.from_numpy(images_BHWC), backbone.recipe.preprocessing)).numpy()
    assert np.allclose(features[own.column], expected_BK, rtol=1e-4, atol=1e-4 * np.abs(expected_BK).max())
    assert set(features) == {own.column, *own.embeddings} and bool(own.embeddings) == keep_embeddings
    assert own.classes == tuple(str(index) for index in range(expected_BK.shape[1]))
    if keep_embeddings:
        plain = Encoder(backbone, device="cpu").encode(images_BHWC)["embedding"]
        assert np.allclose(features[own.embeddings[0]], plain, rtol=1e-4, atol=1e-5)


def test_a_file_of_imagenet_weights_knows_its_classes(tmp_path: Path) -> None:
    weights = tmp_path / "squeezenet.safetensors"
    safetensors.torch.save_file(torchvision.models.squeezenet1_1().state_dict(), weights)
    own = own_classifier(resolve("torchvision:squeezenet1_1", str(weights)), keep_embeddings=False)
    assert len(own.classes) == 1000 and (own.classes[0], own.classes[985]) == ("tench", "daisy")


def test_published_weights_name_their_classes() -> None:
    timms, torchvisions = Timm(), Torchvision()
    names = torchvisions.class_names("resnet50", "IMAGENET1K_V2", torch.nn.Identity())
    assert names is not None and names[985] == "daisy"
    module = timm.create_model("test_resnet")
    names = timms.class_names("test_resnet", "r160_in1k", module)
    assert names is not None and len(names) == 1000 and names[985] == "daisy"
    module.pretrained_cfg = {**module.pretrained_cfg, "label_names": ["cat", "dog"]}
    assert timms.class_names("test_resnet", "r160_in1k", module) == ["cat", "dog"]
    assert timms.class_names("test_resnet", "", timm.create_model("test_resnet", num_classes=3)) is None


def test_recipes_that_would_change_scores_are_refused() -> None:
    with pytest.raises(ConfigError, match="normalize"):
        own_classifier(resolve("timm:test_resnet", normalize=True), keep_embeddings=False)
    with pytest.raises(ConfigError, match="pool gem changes the scores"):
        own_classifier(resolve("timm:resnetv2_18", pool="gem"), keep_embeddings=True)  # a convolution gives its scores
    assert own_classifier(resolve("timm:resnetv2_18", pool="gem"), keep_embeddings=False).embeddings == ()
