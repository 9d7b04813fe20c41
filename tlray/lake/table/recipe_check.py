"""A table belongs to one recipe, or to one model that makes predictions, and refuses others."""

from tlray.errors import RecipeMismatchError
from tlray.predictor import Output
from tlray.recipe import AnyRecipe, RecipeFile


def check_recipe(there: RecipeFile, ours: AnyRecipe, uri: str, *, output: Output | None = None) -> None:
    """Refuse a table of another recipe or model.

    Args:
        there: the table's.
        ours: this run's recipe.
        uri: of the table.
        output: this run's, where it makes predictions.

    Raises:
        RecipeMismatchError: names the fields that differ.
    """
    our_id = output.model_id(ours.recipe_id) if output else ours.recipe_id
    if there.table_id == our_id:
        return
    differences = [line for line in ours.differences(there.recipe) if not line.startswith("weights:")]
    if output is not None and there.output is not None:
        differences += output.differences(there.output)
    elif output is not there.output:
        differences = [f"this run makes {'predictions' if output else 'embeddings'}"]
    raise RecipeMismatchError(
        f"{uri} holds {held_in(there)} {there.table_id[:12]}, but this run's is {our_id[:12]} "
        f"(field: this run's, the table's; {'; '.join(differences)}); give the table's, or name a new table"
    )


def held_in(file: RecipeFile) -> str:
    """What a table holds, for messages that go on with its id."""
    return "predictions of model" if file.output else "embeddings of recipe"
