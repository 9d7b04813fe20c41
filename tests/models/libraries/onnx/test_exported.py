"""Networks of torchvision and timm that torch exported: as ONNX files they compute what the modules themselves do.

Shape legend: B images, H height, W width, C channels, D embedding length.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from tests.models.libraries.onnx.test_formats import encode, resolve
from tests.models.lively import enliven
from tlray.models.backbones.classifier import own_classifier
from tlray.models.backbones.network_input import to_network_input
from tlray.recipe import golden_images


def mobilenet() -> nn.Module:
    return torchvision.models.mobilenet_v3_small(weights=None)


def features_of_mobilenet(network: nn.Module, images_BCHW: torch.Tensor) -> torch.Tensor:
    return network.classifier[:-1](network.avgpool(network.features(images_BCHW)).flatten(1))


def features_of_timm(network: nn.Module, images_BCHW: torch.Tensor) -> torch.Tensor:
    return network.forward_head(network.forward_features(images_BCHW), pre_logits=True)


CASES = {
    "mobilenet_v3_small": (mobilenet, features_of_mobilenet, 224),
    "test_resnet": (lambda: timm.create_model("test_resnet"), features_of_timm, 96),
    "test_vit": (lambda: timm.create_model("test_vit"), features_of_timm, 160),
    "test_vit without a classifier": (lambda: timm.create_model("test_vit", num_classes=0), nn.Module.__call__, 160),
}


@pytest.mark.parametrize("name", CASES)
def test_an_exported_network_is_the_network(name: str, tmp_path: Path) -> None:
    make, features, side = CASES[name]
    torch.manual_seed(0)
    images_BHWC = golden_images(side, side)
    network = enliven(make(), torch.from_numpy(images_BHWC).permute(0, 3, 1, 2) / 127.5 - 1).eval()
    path = tmp_path / "x.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        sizes = ({0: torch.export.Dim("batch")},)
        program = torch.onnx.export(network, (torch.zeros(2, 3, side, side),), dynamic_shapes=sizes, dynamo=True, verbose=False)
    program.model.metadata_props["tlray.preprocessing"] = json.dumps(
        {"resize": [side, side], "crop": [side, side], "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    )
    program.save(str(path))
    backbone = resolve(path)
    inputs_BCHW = to_network_input(torch.from_numpy(images_BHWC), backbone.recipe.preprocessing)
    with torch.no_grad():
        expected_BD = features(network, inputs_BCHW).numpy()
        scores_BK = network(inputs_BCHW).numpy()
    found_BD = encode(backbone, images_BHWC)["embedding"]
    assert found_BD.shape == expected_BD.shape
    np.testing.assert_allclose(found_BD, expected_BD, rtol=1e-3, atol=1e-4 * np.abs(expected_BD).max())
    if "without" not in name:
        own = own_classifier(backbone, keep_embeddings=False)
        found_BK = encode(own.backbone, images_BHWC)[own.column]
        np.testing.assert_allclose(found_BK, scores_BK, rtol=1e-3, atol=1e-4 * np.abs(scores_BK).max())
