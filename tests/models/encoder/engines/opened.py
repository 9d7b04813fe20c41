"""Networks by engines beside torch, for tests."""

from pathlib import Path

import numpy as np

from tlray.config import RecipeConfig
from tlray.models.backbones.images import Backbone, resolve_backbone
from tlray.models.encoder.encoder import Encoder
from tlray.models.encoder.engines.choice import Wanted, open_image_encoder
from tlray.recipe import Compute, Precision, golden_images


def resolve(name: str, compute: Compute = "fp32", **wishes: object) -> Backbone:
    """With random weights."""
    settings = {"backbone": name, "weights": "random:0", "precision": Precision(compute=compute)} | wishes
    return resolve_backbone(RecipeConfig.model_validate(settings), Path)


def pictures(backbone: Backbone, count: int = 7) -> np.ndarray:
    """Some that differ, of the network's size."""
    images_BHWC = golden_images(*backbone.recipe.preprocessing.crop)
    return np.concatenate([images_BHWC, images_BHWC[:, ::-1]])[:count]


def opened(backbone: Backbone, folder: Path, engine: str, **wishes: object) -> Encoder:
    """By two lanes of two images each, where nothing else is wished."""
    given: dict = {"engine": engine, "lanes": 2, "batch_size": 2, "folder": folder} | wishes
    return open_image_encoder(backbone, Wanted(**given))
