"""Keras' own answers: its models, its preparation of images, what its layers put out."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tlray.config import RecipeConfig
from tlray.models.backbones.images import Backbone, resolve_backbone
from tlray.models.libraries.keras.runtime import import_keras
from tlray.recipe import Precision, golden_images

if find_spec("keras") is None:
    pytest.skip("keras is not installed", allow_module_level=True)

keras = import_keras("a test")


def application(name: str, **arguments: Any) -> Any:
    """As `random:0` draws it."""
    keras.utils.set_random_seed(0)
    return getattr(keras.applications, name)(weights=None, **arguments)


def preprocess_input(name: str) -> Any:
    """The function that stands beside an application."""
    return sys.modules[getattr(keras.applications, name).__module__].preprocess_input


def enliven(model: Any) -> Any:
    """Weights under which a deep network tells images apart: batch norms by the statistics of images, with drawn scales."""
    generator = np.random.default_rng(7)
    height, width, channels = (size or 224 for size in model.input_shape[1:])
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in model._flatten_layers(recursive=True, include_self=False):
        for variable in layer._trainable_variables:
            values = np.asarray(keras.ops.convert_to_numpy(variable))
            noise = generator.standard_normal(values.shape).astype(np.float32)
            if values.ndim == 1:
                variable.assign(values + 0.1 * noise)
            elif not norms:
                variable.assign(noise * np.float32((2 / np.prod(values.shape[:-1])) ** 0.5))
    for layer in norms:
        layer.momentum = 0.0
    levels = golden_images(height, width)[..., :channels].astype(np.float32) / 127.5 - 1
    with torch.no_grad():
        model(levels, training=True)
    for layer in norms:
        layer.momentum = 0.99
    return model


def outputs(model: Any, names: Sequence[str], images_BHWC: np.ndarray) -> list[np.ndarray]:
    """What layers put out, by Keras' own predict."""
    part = keras.Model(model.inputs, [model.get_layer(name).output for name in names])
    found = part.predict(images_BHWC, verbose=0)
    return found if isinstance(found, list) else [found]


def loaded(path: Path, image: Image.Image, size: tuple[int, int], **arguments: Any) -> np.ndarray:
    """Pixels as Keras' documentation loads them, HWC."""
    image.save(path)
    return keras.utils.img_to_array(keras.utils.load_img(path, target_size=size, **arguments))


def resolve(backbone: str, weights: str = "default", **wishes: Any) -> Backbone:
    settings = {"backbone": backbone, "weights": weights, "precision": Precision(compute="fp32", storage="full")}
    return resolve_backbone(RecipeConfig.model_validate(settings | wishes), Path)


def cosines(found_BD: np.ndarray, expected_BD: np.ndarray) -> np.ndarray:
    found_BD, expected_BD = found_BD.astype(np.float64), expected_BD.astype(np.float64)
    norms_B = np.linalg.norm(found_BD, axis=1) * np.linalg.norm(expected_BD, axis=1)
    return (found_BD * expected_BD).sum(1) / norms_B
