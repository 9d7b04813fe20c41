"""Backbones of images and of texts: which of them a recipe means."""

from collections.abc import Sequence

from tlray.config import RecipeConfig
from tlray.errors import RecipeMismatchError
from tlray.models.backbones.images import Backbone, load_backbone, resolve_backbone, with_taps
from tlray.models.texts.backbones import load_text_backbone, resolve_text_backbone
from tlray.models.texts.text_model import TextBackbone
from tlray.models.weights.spec import FetchFile
from tlray.recipe import AnyRecipe, TextRecipe
from tlray.recipe.texts import is_of_texts

AnyBackbone = Backbone | TextBackbone


def resolve_any_backbone(config: RecipeConfig, fetch: FetchFile) -> AnyBackbone:
    """Complete what the user asks for; see `resolve_backbone` and `resolve_text_backbone`."""
    return resolve_text_backbone(config, fetch) if is_of_texts(config.backbone) else resolve_backbone(config, fetch)


def load_any_backbone(recipe: AnyRecipe, fetch: FetchFile, taps: Sequence[str] = ()) -> AnyBackbone:
    """Make the network or text model of a recipe again; see `load_backbone` and `load_text_backbone`.

    Args:
        recipe: of images or of texts.
        fetch: brings the URI or path of a weights file to a local path.
        taps: of an image network, the layers to keep in place of the recipe's.
    """
    if isinstance(recipe, TextRecipe):
        return load_text_backbone(recipe, fetch)
    backbone = load_backbone(recipe, fetch)
    return with_taps(backbone, taps) if taps else backbone


def image_backbone(backbone: AnyBackbone) -> Backbone:
    """A backbone, where it embeds images.

    Raises:
        RecipeMismatchError: it embeds texts.
    """
    if isinstance(backbone, Backbone):
        return backbone
    raise RecipeMismatchError(f"{backbone.recipe.backbone} embeds texts; expected a network of images here")
