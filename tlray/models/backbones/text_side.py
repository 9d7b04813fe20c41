"""The text side of an images' network by itself."""

from tlray.models.backbones.images import request_of
from tlray.models.libraries.library import LibraryOfTexts, TextSide
from tlray.models.weights.spec import FetchFile
from tlray.recipe import Recipe


def find_text_side(recipe: Recipe, fetch: FetchFile) -> TextSide | None:
    """The text side of a recipe's network, without loading the image side; None where its library loads both or has none.

    The recipe's hash is of the image side, so that texts' own golden vectors have to show whether the weights are the same.

    Raises:
        BackboneError, WeightsError: as `load_backbone`, as far as that can be told without the image side.
    """
    library, request = request_of(recipe)
    return library.text_side(request, fetch) if isinstance(library, LibraryOfTexts) else None
