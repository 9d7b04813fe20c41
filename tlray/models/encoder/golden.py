"""Golden vectors: what a new table keeps of its network, and encoders that have shown that they compute the same."""

from importlib.metadata import version

import numpy as np
import torch

from tlray.errors import BackboneError, ConfigError
from tlray.models.backbones import Backbone, load_backbone
from tlray.models.encoder.encoder import Encoder, at_fp32
from tlray.models.encoder.exactness import choose_exact_below
from tlray.models.encoder.text import golden_text_of
from tlray.models.weights.spec import FetchFile
from tlray.recipe import RecipeFile, check_golden, golden_images

_PACKAGES = ("tlray", "torch", "torchvision", "timm")
"""Of which a table keeps the versions that computed its golden vectors, whatever its network is."""


def make_recipe_file(backbone: Backbone) -> RecipeFile:
    """What a new table keeps of its backbone: the recipe, and the golden images and texts embedded at fp32, on the CPU.

    Raises:
        BackboneError: the embeddings are not finite.
        WeightsError: the weights of its text tower are gone.
    """
    recipe = backbone.recipe
    golden = at_fp32(backbone).encode(golden_images(*recipe.preprocessing.crop))
    for column, features_BD in golden.items():
        if not np.isfinite(features_BD).all():
            raise BackboneError(f"{recipe.backbone} gives {column} that is not finite; use other weights or another layer")
    try:
        exact_below = choose_exact_below(backbone, torch.device("cpu"))
    except ConfigError:  # not every CPU computes at 16 bits what the workers' devices do
        exact_below = 0
    return RecipeFile(
        recipe_id=recipe.recipe_id,
        recipe=recipe,
        shapes=backbone.shapes,
        golden={column: features_BD.tolist() for column, features_BD in golden.items()},
        golden_text=golden_text_of(backbone),
        exact_below=exact_below,
        notes=backbone.notes,
        made_with={package: version(package) for package in (*_PACKAGES, *backbone.packages)},
    )


def make_encoder(
    expected: RecipeFile,
    fetch: FetchFile,
    *,
    where: str,
    backbone: Backbone | None = None,
    batch_size: int | None = None,
    lanes: int | None = None,
) -> Encoder:
    """An encoder that has shown that it computes the table's numbers.

    Args:
        expected: the table's recipe file.
        fetch: brings the URI or path of a weights file to a local path.
        where: for the message, should it not.
        backbone: already loaded; default loads it by the recipe.
        batch_size: see `Encoder`.
        lanes: likewise.

    Raises:
        GoldenMismatchError: it computes others.
        WeightsError: the weights changed or are gone.
    """
    backbone = backbone or load_backbone(expected.recipe, fetch)
    encoder = Encoder(backbone, batch_size=batch_size, exact_below=expected.exact_below, lanes=lanes)
    check_encoder(encoder, expected, where=where)
    return encoder


def check_encoder(encoder: Encoder, expected: RecipeFile, *, where: str) -> float:
    """Hold what an encoder makes of the golden images against the table's; see `tlray.recipe.check_golden`."""
    return check_golden(expected, encoder.encode(golden_images(*expected.recipe.preprocessing.crop)), where=where)
