"""The document `recipe.json` beside a table's log: the recipe, of images or of texts, and what its network is checked by."""

import math
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, ValidationError

from tlray.errors import RecipeMismatchError
from tlray.predictor import Output
from tlray.recipe.base import Strict
from tlray.recipe.images import Recipe
from tlray.recipe.quantization import Quantization
from tlray.recipe.texts import TextRecipe

_KINDS = ("images", "texts")


def kind_of(document: Any) -> str:
    """What a recipe or its document embeds: `images` or `texts`."""
    is_of_texts = "tokens" in document if isinstance(document, dict) else isinstance(document, TextRecipe)
    return _KINDS[is_of_texts]


AnyRecipe = Annotated[
    Annotated[Recipe, Tag(_KINDS[0])] | Annotated[TextRecipe, Tag(_KINDS[1])],
    Discriminator(kind_of),
]
"""A recipe of images or of texts, as their documents tell."""


def of_images(recipe: AnyRecipe) -> Recipe:
    """A recipe, where images are embedded by it.

    Raises:
        RecipeMismatchError: it is one of texts.
    """
    if isinstance(recipe, Recipe):
        return recipe
    raise RecipeMismatchError(f"{recipe.backbone} embeds texts, and images were given; give texts, or name a table of images")


class RecipeFile(Strict):
    """The document `recipe.json`, which lies beside a table's log.

    Attributes:
        recipe_id: fingerprint of `recipe`, repeated for readers that do not compute it.
        recipe: the recipe.
        shapes: per column, the shape of one embedding before it was flattened into a list.
        golden: per column, the fp32 embeddings of the golden images or texts, B rows of D floats.
        golden_text: the fp32 vectors of the golden texts, where the network has a text tower and a column shares its space.
        golden_inputs: of a table of texts, the texts that `golden` are the embeddings of.
        exact_below: at 16 bits and at int8, so many of the first layers stay at fp32; chosen when the table is made, so that
            all workers of all runs compute alike.
        quantization: at int8, how the others are rounded; likewise.
        output: what a table of predictions holds in place of embeddings; None for a table of embeddings.
        notes: what was assumed, left out or changed when the network's weights were read; for people.
        made_with: versions of the packages that computed `golden`.
    """

    recipe_id: str
    recipe: AnyRecipe
    shapes: dict[str, tuple[int, ...]]
    golden: dict[str, list[list[float]]]
    golden_text: list[list[float]] | None = Field(None, exclude_if=lambda rows: rows is None)
    golden_inputs: tuple[str, ...] = Field((), exclude_if=lambda texts: not texts)
    exact_below: int = Field(0, ge=0)
    quantization: Quantization | None = Field(None, exclude_if=lambda found: found is None)
    output: Output | None = None
    notes: tuple[str, ...] = Field((), exclude_if=lambda notes: not notes)
    made_with: dict[str, str]

    @property
    def table_id(self) -> str:
        """What a table belongs to and its parts are marked with: the recipe, or the model that makes predictions."""
        return self.output.model_id(self.recipe_id) if self.output else self.recipe_id

    @property
    def reference(self) -> dict[str, list[list[float]]]:
        """What machines are held against: the golden vectors at int8 of a table that is computed so, else those at fp32."""
        return self.golden if self.quantization is None else self.quantization.golden

    def with_weights(self, weights: str) -> "RecipeFile":
        """The same with its weights at another place: they may have moved since the table was made."""
        return self.model_copy(update={"recipe": self.recipe.model_copy(update={"weights": weights})})

    @property
    def embedding_columns(self) -> tuple[str, ...]:
        """Names of the columns of embeddings; a table of predictions may have none."""
        return self.output.embeddings if self.output else tuple(self.recipe.columns.values())

    @property
    def lengths(self) -> dict[str, int]:
        """Floats in each row of every column of numbers."""
        of_embeddings = {column: math.prod(self.shapes[column]) for column in self.embedding_columns}
        return of_embeddings | (self.output.lengths if self.output else {})

    def to_json(self) -> bytes:
        """The document as it is stored."""
        return self.model_dump_json(indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes, uri: str) -> "RecipeFile":
        """Read a recipe file back, refusing what this version does not know.

        Raises:
            RecipeMismatchError: unknown or missing fields, or an id that is not the recipe's own.
        """
        try:
            document = cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"] if part not in _KINDS)
            raise RecipeMismatchError(
                f"{uri} is not a recipe of this version of tlray ({where}: {first['msg']}); "
                "use the version that made it, or extract to a new table"
            ) from error
        if (document.recipe.precision.compute == "int8") != (document.quantization is not None):
            raise RecipeMismatchError(
                f"{uri} was edited: recipes at int8, and these alone, have a quantization; "
                "restore the file, or extract to a new table"
            )
        if document.recipe_id != document.recipe.recipe_id:
            raise RecipeMismatchError(
                f"{uri} was edited: its recipe_id is {document.recipe_id[:12]}, but its recipe's fingerprint is "
                f"{document.recipe.recipe_id[:12]}; restore the file, or extract to a new table"
            )
        return document
