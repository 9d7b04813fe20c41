"""From pixels to the network's input: the modes of torchvision, timm and Keras, and values of another scale."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tlray.config import PreprocessingConfig, RecipeConfig
from tlray.errors import ConfigError
from tlray.models.backbones.images import Backbone, resolve_backbone
from tlray.models.backbones.network_input import to_network_input, to_network_input_of_graph
from tlray.models.encoder.encoder import Encoder
from tlray.recipe import Precision, golden_images

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)


def resolve(**overrides: object) -> Backbone:
    config = RecipeConfig(
        backbone="timm:test_resnet",
        weights="random:0",
        precision=Precision(compute="fp32"),
        preprocessing=PreprocessingConfig.model_validate({"resize": 64, "crop": (64, 48)} | overrides),
    )
    return resolve_backbone(config, Path)


def keras_caffe(images_BHWC: np.ndarray) -> np.ndarray:
    """As `keras.applications.imagenet_utils.preprocess_input` documents its modes."""
    return images_BHWC[..., ::-1] - np.array(CAFFE_MEAN_BGR, np.float32)


def keras_tf(images_BHWC: np.ndarray) -> np.ndarray:
    return images_BHWC / np.float32(127.5) - np.float32(1)


def keras_torch(images_BHWC: np.ndarray) -> np.ndarray:
    return (images_BHWC / np.float32(255) - np.array(IMAGENET["mean"])) / np.array(IMAGENET["std"])


MODES = [
    ({"channels": "bgr", "scale": (0, 255), "mean": CAFFE_MEAN_BGR, "std": (1, 1, 1)}, keras_caffe),
    ({"scale": (-1, 1), "mean": (0, 0, 0), "std": (1, 1, 1)}, keras_tf),
    (IMAGENET, keras_torch),
]
PRESETS = [({"preset": f"keras:{mode}"}, oracle) for mode, (_, oracle) in zip(("caffe", "tf", "torch"), MODES, strict=True)]


@pytest.mark.parametrize(("overrides", "oracle"), [*MODES, *PRESETS])
def test_modes_of_keras(overrides: dict, oracle: object) -> None:
    preprocessing = resolve(**overrides).recipe.preprocessing
    images_BHWC = golden_images(64, 48)
    found_BCHW = to_network_input(torch.from_numpy(images_BHWC), preprocessing)
    expected_BHWC = oracle(images_BHWC.astype(np.float32))
    np.testing.assert_allclose(
        found_BCHW.permute(0, 2, 3, 1), expected_BHWC, rtol=1e-6, atol=1e-6 * np.abs(expected_BHWC).max()
    )
    assert found_BCHW.dtype == torch.float32 and found_BCHW.is_contiguous(memory_format=torch.channels_last)
    of_graph_BCHW = to_network_input_of_graph(torch.from_numpy(images_BHWC), preprocessing)
    np.testing.assert_allclose(
        of_graph_BCHW.permute(0, 2, 3, 1), expected_BHWC, rtol=1e-6, atol=1e-6 * np.abs(expected_BHWC).max()
    )


@pytest.mark.parametrize(("overrides", "oracle"), MODES, ids=("caffe", "tf", "torch"))
def test_a_preset_is_what_it_stands_for(overrides: dict, oracle: object) -> None:
    (preset,) = [preset for preset, other in PRESETS if other is oracle]
    assert resolve(**preset).recipe.recipe_id == resolve(**overrides).recipe.recipe_id


def test_what_is_given_beside_a_preset_wins() -> None:
    preprocessing = resolve(preset="keras:caffe", mean=(104, 117, 123)).recipe.preprocessing
    assert preprocessing.mean == (104, 117, 123) and preprocessing.channels == "bgr" and preprocessing.scale == (0, 255)
    with pytest.raises(ValueError, match="keras:caffe"):
        PreprocessingConfig.model_validate({"preset": "caffe"})


@pytest.mark.parametrize(("overrides", "oracle"), MODES, ids=("caffe", "tf", "torch"))
def test_the_encoder_applies_them(overrides: dict, oracle: object) -> None:
    backbone = resolve(**overrides)
    images_BHWC = golden_images(64, 48)
    inputs_BCHW = torch.from_numpy(oracle(images_BHWC.astype(np.float32))).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        expected_BD = backbone.module.forward_head(backbone.module.forward_features(inputs_BCHW), pre_logits=True).numpy()
    found_BD = Encoder(backbone, device="cpu").encode(images_BHWC)["embedding"]
    np.testing.assert_allclose(found_BD, expected_BD, rtol=1e-3, atol=1e-4 * np.abs(expected_BD).max())


def test_without_them_the_numbers_are_those_of_before() -> None:
    preprocessing = resolve().recipe.preprocessing
    images_BHWC = torch.from_numpy(golden_images(64, 48))
    mean_C, std_C = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    assert torch.equal(to_network_input(images_BHWC, preprocessing).permute(0, 2, 3, 1), (images_BHWC / 255 - mean_C) / std_C)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
            r"divided by 255: give mean \[0.485, 0.456, 0.406\] and std \[0.229, 0.224, 0.225\], or scale \[0, 255\]",
        ),
        ({"std": (58.395, 57.12, 57.375)}, r"values in 0\.\.1"),
        ({"mean": (0.485, float("nan"), 0.4)}, r"values in 0\.\.1"),
        ({"mean": (-0.5, 0.4, 0.4)}, r"values in 0\.\.1"),
        ({"mean": (0.001, 0.4, 0.4), "std": (0.0001, 0.2, 0.2)}, r"values in 0\.\.1"),
        ({"scale": (0, 255)} | IMAGENET, r"values in 0\.\.255"),
        ({"scale": (-1, 1), "mean": (123, 116, 103)}, r"values in -1\.\.1"),
        ({"scale": (255, 0)}, "two numbers that rise"),
        ({"scale": (0, float("inf"))}, "two numbers that rise"),
    ],
)
def test_values_of_another_scale_are_refused(overrides: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(**overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        {"mean": (0, 0, 0), "std": (1, 1, 1)},
        {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
        {"scale": (0, 255), "mean": (0, 0, 0), "std": (1, 1, 1)},
        {"scale": (0, 255), "mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
        {"scale": (-1, 1), "mean": (0, 0, 0), "std": (1, 1, 1)},
        {"scale": (-128, 127), "mean": (0, 0, 0), "std": (1, 1, 1)},
    ],
)
def test_values_that_networks_have_are_taken(overrides: dict) -> None:
    preprocessing = resolve(**overrides).recipe.preprocessing
    assert preprocessing.mean == overrides["mean"] and preprocessing.std == overrides["std"]
