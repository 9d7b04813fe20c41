"""An application of Keras is frozen up to a layer and trained, from images and from activations; a model's file is not.

Shape legend: B images, C channels, H height, W width.
"""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.models.libraries.keras.oracle import application, keras, outputs, preprocess_input
from tests.training.networks import extract_activations, largest_difference, photos_in, tensors_of, training
from tlray.errors import ConfigError
from tlray.lake.storage.local_copy import local_copy
from tlray.lake.storage.uri import to_uri
from tlray.lake.table.table import Table
from tlray.models.backbones.images import load_backbone
from tlray.models.encoder.encoder import Encoder
from tlray.recipe import golden_images
from tlray.training.model.model import load_model
from tlray.training.train import train

SIDE = 32
CUT = "conv_pw_12_relu"
RECIPE = {
    "backbone": "keras:MobileNet",
    "weights": "random:0",
    "precision": {"compute": "fp32", "storage": "full"},
    "preprocessing": {"resize": SIDE, "crop": SIDE},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos_in(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "model"
    train(training(photos, out, recipe=RECIPE, network={"freeze": CUT}))
    return out


def test_what_is_frozen_stays_and_the_rest_learns(trained: Path) -> None:
    state = safetensors.torch.load_file(trained / "network.safetensors")
    model = application("MobileNet", include_top=False, pooling="avg", input_shape=(SIDE, SIDE, 3))
    for number in range(14):
        before = model.get_layer(f"conv_pw_{number}" if number else "conv1").kernel.value.permute(3, 2, 0, 1)
        is_same = torch.equal(state[f"conv_pw_{number}.weight" if number else "conv1.weight"], before)
        assert is_same is (number <= 12)
    assert bool(state["conv_pw_13_bn.running_mean"].any()) and not bool(state["conv_pw_12_bn.running_mean"].any())


def test_keras_computes_the_same_with_what_was_learned(trained: Path) -> None:
    """The trained weights, put back into Keras' own network by hand."""
    recipe = load_model(to_uri(str(trained))).card.recipe
    backbone = load_backbone(recipe, local_copy)
    state = safetensors.torch.load_file(trained / "network.safetensors")
    model = application("MobileNet", include_top=False, pooling="avg", input_shape=(SIDE, SIDE, 3))
    model.get_layer("conv_pw_13").kernel.assign(state["conv_pw_13.weight"].permute(2, 3, 1, 0))
    depthwise = state["conv_dw_13.weight"]
    model.get_layer("conv_dw_13").kernel.assign(depthwise.permute(2, 3, 0, 1))
    for name in ("conv_dw_13_bn", "conv_pw_13_bn"):
        norm = model.get_layer(name)
        for ours, theirs in (("weight", norm.gamma), ("bias", norm.beta)):
            theirs.assign(state[f"{name}.{ours}"])
        norm.moving_mean.assign(state[f"{name}.running_mean"])
        norm.moving_variance.assign(state[f"{name}.running_var"])
    images_BHWC = golden_images(SIDE, SIDE)
    expected_BD = model.predict(preprocess_input("MobileNet")(images_BHWC.astype(np.float32)), verbose=0)
    found_BD = Encoder(backbone, device="cpu", batch_size=4).encode(images_BHWC)["embedding"]
    np.testing.assert_allclose(found_BD, expected_BD, rtol=1e-3, atol=1e-4 * expected_BD.max())


def test_training_on_activations_is_training_on_images(photos: Path, trained: Path, tmp_path: Path) -> None:
    table = extract_activations(photos, tmp_path / "table", **RECIPE, taps=[CUT])
    file = Table.open(to_uri(str(table))).recipe_file
    model = application("MobileNet", include_top=False, pooling="avg", input_shape=(SIDE, SIDE, 3))
    (expected_BHWC,) = outputs(model, [CUT], preprocess_input("MobileNet")(golden_images(SIDE, SIDE).astype(np.float32)))
    assert file.shapes == {"embedding": expected_BHWC.shape[1:]}
    np.testing.assert_allclose(file.golden["embedding"], expected_BHWC.reshape(4, -1), rtol=1e-3, atol=1e-5)
    out = tmp_path / "model"
    train(training(photos, out, source=None, recipe=None, table=str(table), network={"freeze": None}))
    assert largest_difference(tensors_of(out), tensors_of(trained)) < 1e-4


def test_a_models_file_is_not_trained(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    layers = keras.layers
    keras.Sequential([keras.Input((SIDE, SIDE, 3)), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(2)]).save(path)
    recipe = RECIPE | {"backbone": f"keras:{path}", "weights": "default"}
    with pytest.raises(ConfigError, match="keras:file cannot be trained: its layers are those of a file"):
        train(training(photos, tmp_path / "out", recipe=recipe))
