"""Small made-up values that several tests need."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from tlray.columns.column import Column, fields_of
from tlray.lake.table.parts import Change, vector_column
from tlray.lake.table.schema import FIXED_FIELDS
from tlray.lake.table.table import Table
from tlray.recipe import Preprocessing, Recipe, RecipeFile

DIMENSIONS = 4


def make_recipe(**changes: object) -> Recipe:
    preprocessing = Preprocessing(
        resize=(8, 8), crop=(8, 8), interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    fields = {
        "backbone": "torchvision:alexnet",
        "weights": "random:0",
        "weights_sha256": "0" * 64,
        "taps": ("avgpool",),
        "preprocessing": preprocessing,
    }
    return Recipe(**(fields | changes))


def make_recipe_file(**changes: object) -> RecipeFile:
    recipe = make_recipe(**changes)
    return RecipeFile(
        recipe_id=recipe.recipe_id,
        recipe=recipe,
        shapes={"embedding": (DIMENSIONS,)},
        golden={"embedding": np.eye(DIMENSIONS).tolist()},
        made_with={"torch": "0"},
    )


def make_rows(items: Sequence[tuple[str, str, str | None]], error: str | None = None) -> pa.Table:
    """Rows for (uri, etag, label); the vector of an image is drawn from its uri and etag."""
    count = len(items)
    columns = {
        "uri": pa.array([uri for uri, _, _ in items], pa.string()),
        "etag": pa.array([etag for _, etag, _ in items], pa.string()),
        "label": pa.array([label for _, _, label in items], pa.string()),
        "width": pa.array([None if error else 10] * count, pa.int32()),
        "height": pa.array([None if error else 20] * count, pa.int32()),
    }
    schema = pa.schema([*FIXED_FIELDS])
    rows = pa.table(columns, schema)
    if error is None:
        vectors = np.stack([vector_of(uri, etag) for uri, etag, _ in items])
        rows = rows.append_column("embedding", vector_column(vectors, "half"))
    else:
        rows = rows.append_column("embedding", pa.nulls(count, pa.list_(pa.float32())))
    return rows.append_column("error", pa.array([error] * count, pa.string()))


def add_columns(table: Table, columns: Sequence[Column]) -> None:
    """Columns that travel come into a table, though no row has a value yet."""
    names = " ".join(column.name for column in columns)
    table.commit(Change(fields=fields_of(columns)), app_id=f"columns {names}", sequence=1, info={})


def vector_of(uri: str, etag: str) -> np.ndarray:
    seed = int.from_bytes(f"{uri}|{etag}".encode(), "little") % 2**63
    return np.random.default_rng(seed).standard_normal(DIMENSIONS).astype(np.float32)


def read_with_polars(table: Table | str) -> pl.DataFrame:
    """All live rows of a local table as another engine sees them, by uri."""
    uri = table.uri if isinstance(table, Table) else table
    return pl.scan_delta(uri.removeprefix("file://")).collect().sort("uri")
