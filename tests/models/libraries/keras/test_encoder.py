"""The encoder makes networks of Keras fast as it makes others, and they stay what they are.

Shape legend: B images, D embedding length.
"""

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.libraries.keras.oracle import cosines, outputs, preprocess_input, resolve
from tests.models.libraries.keras.test_conformance import mobile_net
from tlray.models.backbones.images import Backbone
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.network.network import Folded, Network
from tlray.recipe import GOLDEN_TOLERANCE, golden_images

IMAGES_BHWC = golden_images(224, 224)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    path = tmp_path_factory.mktemp("weights") / "w.weights.h5"
    mobile_net().save_weights(path)
    return resolve("keras:MobileNet", str(path))


@pytest.fixture(scope="module")
def keras_own() -> np.ndarray:
    name = next(layer.name for layer in mobile_net().layers if layer.name.startswith("global_average"))
    inputs_BHWC = preprocess_input("MobileNet")(IMAGES_BHWC.astype(np.float32))
    return outputs(mobile_net(), [name], inputs_BHWC)[0].reshape(len(inputs_BHWC), -1)


def with_compute(backbone: Backbone, compute: str) -> Backbone:
    return resolve("keras:MobileNet", backbone.recipe.weights, precision={"compute": compute, "storage": "full"})


def test_batch_norms_are_folded_and_convolutions_packed(backbone: Backbone) -> None:
    folded = Folded.of(backbone, packed=True)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.module.modules())
    assert len(folded.packable) == 28 and sum(each.activation is not None for each in folded.packable) == 27


def test_lanes_give_what_one_pass_gives(backbone: Backbone, keras_own: np.ndarray) -> None:
    found = Encoder(backbone, device="cpu", batch_size=2, lanes=2).encode(IMAGES_BHWC)["embedding"]
    np.testing.assert_array_equal(found, Encoder(backbone, device="cpu", batch_size=2).encode(IMAGES_BHWC)["embedding"])
    assert cosines(found, keras_own).min() >= 0.9999


@pytest.mark.usefixtures("any_arithmetic")
def test_sixteen_bits_stay_within_the_tolerance(backbone: Backbone, keras_own: np.ndarray) -> None:
    encoder = Encoder(with_compute(backbone, "bf16"), device="cpu", batch_size=4)
    found = encoder.encode(IMAGES_BHWC)["embedding"]
    assert cosines(found, keras_own).min() >= GOLDEN_TOLERANCE["bf16"]
    assert not np.array_equal(found, Encoder(backbone, device="cpu", batch_size=4).encode(IMAGES_BHWC)["embedding"])


def test_it_is_recorded_for_compiling(backbone: Backbone, keras_own: np.ndarray) -> None:
    images = torch.from_numpy(IMAGES_BHWC)
    program = torch.export.export(Network.of(backbone, torch.device("cpu"), 0).eval(), (images,), strict=False)
    with torch.no_grad():
        (found,) = program.module()(images)
    assert cosines(found.numpy(), keras_own).min() >= 0.9999
