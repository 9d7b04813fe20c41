"""Networks as a user asks for them, held against what their own library computes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tlray.config import PreprocessingConfig, RecipeConfig
from tlray.models.backbones.images import Backbone, load_backbone, resolve_backbone
from tlray.models.backbones.network_input import to_network_input
from tlray.models.encoder.encoder import Encoder
from tlray.recipe import Precision, golden_images


def resolve(backbone: str, weights: object, crop: int | tuple[int, int] | None = None, **recipe: object) -> Backbone:
    """At fp32, for images of a size; that of the weights where none is given."""
    config = RecipeConfig(
        backbone=backbone,
        weights=str(weights),
        precision=Precision(compute="fp32"),
        preprocessing=PreprocessingConfig(resize=crop, crop=crop),
        **recipe,
    )
    return resolve_backbone(config, Path)


def check(backbone: Backbone, oracle: Callable[[Tensor], Tensor], tolerance: float = 1e-4) -> None:
    """Embeddings are those of a library's own network before its classifier, on a worker too.

    Args:
        backbone: the network.
        oracle: from prepared images_BCHW to features_BD.
        tolerance: as a share of the largest number.
    """
    images_BHWC = golden_images(*backbone.recipe.preprocessing.crop)
    inputs_BCHW = to_network_input(torch.from_numpy(images_BHWC), backbone.recipe.preprocessing)
    with torch.no_grad():
        expected = oracle(inputs_BCHW).numpy()
    for one in (backbone, load_backbone(backbone.recipe, Path)):
        found = Encoder(one, device="cpu").encode(images_BHWC)["embedding"]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=tolerance * np.abs(expected).max())
