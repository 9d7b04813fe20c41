"""What a run makes of images: embeddings, or predictions of a model."""

from dataclasses import dataclass, replace

from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import join
from tlray.lake.table.table import Table
from tlray.models.backbones.any_backbone import AnyBackbone
from tlray.models.backbones.images import Backbone
from tlray.models.encoder.golden import make_recipe_file
from tlray.predictor import Output
from tlray.progress import say
from tlray.recipe import IMAGE_RULE, AnyRecipe, RecipeFile


@dataclass(frozen=True)
class Target:
    """What a table is to hold: a network's features, or what a head makes of them.

    Attributes:
        backbone: complete.
        output: from its features to predictions; None keeps the features as embeddings.
        head: the file of the trained head, where the output has one.
        known: a recipe file of these features, from where the head was trained; None makes one.
    """

    backbone: AnyBackbone
    output: Output | None = None
    head: bytes | None = None
    known: RecipeFile | None = None

    @property
    def ids(self) -> dict[str, str]:
        """The fingerprints of the recipe and, of predictions, of the model."""
        recipe_id = self.backbone.recipe.recipe_id
        return {"recipe_id": recipe_id} | ({"model_id": self.output.model_id(recipe_id)} if self.output else {})

    def under_rule_of(self, there: AnyRecipe) -> "Target":
        """The same under the image rule of a table that is there, so that it goes on as it was begun.

        A trained head keeps its own rule: it belongs to vectors that were made by it.
        """
        if self.head is not None or not isinstance(self.backbone, Backbone):
            return self
        recipe = self.backbone.recipe.under_rule_of(there)
        if recipe is self.backbone.recipe:
            return self
        say(f"the table was made by image rule {recipe.image_rule} and goes on with it (new tables: {IMAGE_RULE})")
        return replace(self, backbone=replace(self.backbone, recipe=recipe))

    def create_table(self, uri: str) -> Table:
        """Make the table, with a copy of the head beside it: it stays usable whatever becomes of the model's folder.

        Raises:
            RecipeMismatchError: another recipe or model is there already.
            BackboneError: the network's features are not finite.
        """
        file = self.known or make_recipe_file(self.backbone)  # first, as a network may be refused
        if self.output is not None and self.output.head is not None:
            assert self.head is not None
            open_store(uri).write(join(uri, self.output.head.name), self.head, if_absent=True)
        return Table.create(uri, file.model_copy(update={"output": self.output}))
