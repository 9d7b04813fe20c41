"""Keras passes the conformance suite, with an application and with a model's file."""

from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models.conformance import LibraryConformance
from tests.models.libraries.keras.oracle import application, enliven, keras, loaded, outputs, preprocess_input
from tlray.models.backbones.images import Backbone


@cache
def mobile_net() -> Any:
    return enliven(application("MobileNet", input_shape=(224, 224, 3)))


@cache
def small_model(seed: int) -> Any:
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    inputs = keras.Input((48, 48, 3))
    value = layers.Rescaling(1 / 127.5, offset=-1, name="scale")(inputs)
    for number, filters in enumerate((8, 16)):
        value = layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False, name=f"conv{number}")(value)
        value = layers.BatchNormalization(name=f"bn{number}")(value)
        value = layers.ReLU(name=f"relu{number}")(value)
    value = layers.GlobalAveragePooling2D(name="pool")(value)
    return enliven(keras.Model(inputs, layers.Dense(4, activation="softmax", name="classes")(value)))


class TestApplication(LibraryConformance):
    backbone = "keras:MobileNet"
    taps: ClassVar = {"global_average_pooling2d": (1024,), "conv1_relu": (32,), "conv_pw_6_relu": (512,)}

    def weights(self, folder: Path) -> str:
        path = folder / "w.weights.h5"
        if not path.exists():
            mobile_net().save_weights(path)
        return str(path)

    def prepared(self, image: Image.Image, backbone: Backbone) -> np.ndarray:
        path = Path(backbone.recipe.weights).with_name("image.png")
        return preprocess_input("MobileNet")(loaded(path, image, (224, 224))).transpose(2, 0, 1)

    def embedded(self, inputs_BCHW: torch.Tensor, backbone: Backbone) -> np.ndarray:
        name = next(layer.name for layer in mobile_net().layers if layer.name.startswith("global_average"))
        (features,) = outputs(mobile_net(), [name], inputs_BCHW.permute(0, 2, 3, 1).numpy())
        return features.reshape(len(features), -1)


class TestModelFile(LibraryConformance):
    backbone = "keras:file"
    taps: ClassVar = {"pool": (16,), "relu0": (8,), "conv1": (16,)}

    @pytest.fixture(autouse=True)
    def other(self, tmp_path: Path) -> None:
        self.other_weights = str(tmp_path / "other.keras")
        small_model(1).save(self.other_weights)

    def weights(self, folder: Path) -> str:
        path = folder / "model.keras"
        if not path.exists():
            small_model(0).save(path)
        return str(path)

    def prepared(self, image: Image.Image, backbone: Backbone) -> np.ndarray:
        return loaded(Path(backbone.recipe.weights).with_name("image.png"), image, (48, 48)).transpose(2, 0, 1)

    def embedded(self, inputs_BCHW: torch.Tensor, backbone: Backbone) -> np.ndarray:
        return outputs(small_model(0), ["pool"], inputs_BCHW.permute(0, 2, 3, 1).numpy())[0]
