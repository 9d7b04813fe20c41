"""The columns of a table: those that every one has, and those that its recipe or its model gives it."""

import pyarrow as pa

from tlray.predictor import Output
from tlray.recipe import RecipeFile, TextRecipe

FIXED_FIELDS = (
    pa.field("uri", pa.string(), nullable=False),
    pa.field("etag", pa.string()),
    pa.field("label", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
)
ERROR_FIELD = pa.field("error", pa.string())
STATUS_FIELD = pa.field("status", pa.string(), nullable=False)


FLOATS = pa.list_(pa.float32())
TEXTS = pa.list_(pa.string())


def table_schema(file: RecipeFile) -> pa.Schema:
    """Schema of a table as other engines see it, with the partition column.

    Args:
        file: the table's.
    """
    return pa.schema([*FIXED_FIELDS, *own_fields(file), ERROR_FIELD, STATUS_FIELD])


def own_fields(file: RecipeFile) -> list[pa.Field]:
    """The columns that tables of other recipes or models need not have: texts, measures, predictions, and embeddings."""
    predictions = prediction_fields(file.output) if file.output else []
    texts = [pa.field("text", pa.string())] if isinstance(file.recipe, TextRecipe) else []
    measures = [pa.field(name, pa.float32()) for name in file.recipe.measures]
    return [*texts, *measures, *predictions, *(pa.field(column, FLOATS) for column in file.embedding_columns)]


def prediction_fields(output: Output) -> list[pa.Field]:
    """The columns of predictions, by what the model was trained for."""
    if output.task == "regression":
        return [pa.field("values", FLOATS)]
    top = [pa.field("top_labels", TEXTS), pa.field("top_probabilities", FLOATS)]
    if output.task == "multi":
        return [pa.field("predictions", TEXTS), *top]
    return [pa.field("prediction", pa.string()), pa.field("probability", pa.float32()), *top]
