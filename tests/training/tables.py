"""Tables of given vectors, and configs on them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.factories import make_recipe
from tlray.config import TrainConfig
from tlray.lake.table.parts import Change, vector_column, write_part
from tlray.lake.table.schema import FIXED_FIELDS
from tlray.lake.table.table import Table
from tlray.recipe import RecipeFile

CLASSES = 5
DIMENSIONS = 16


def blobs(count: int, *, seed: int = 0, dimensions: int = DIMENSIONS, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around one centre a class, of very unequal scales and with an offset, and their classes."""
    centres = np.random.default_rng(100).standard_normal((CLASSES, dimensions))
    scales = np.geomspace(0.1, 10, dimensions)
    rng = np.random.default_rng(seed)
    classes = rng.integers(CLASSES, size=count)
    features = (centres[classes] + noise * rng.standard_normal((count, dimensions))) * scales + 3
    return features.astype(np.float32), classes


def uri_of(number: int, label: object) -> str:
    return f"s3://photos/{label}/{number:05d}.jpg"


def write_table(
    folder: Path,
    columns: dict[str, np.ndarray],
    labels: Sequence[object],
    *,
    part_rows: int = 100,
    seed: int = 0,
    uris: Sequence[str] | None = None,
) -> Table:
    """A table of these vectors, in parts of shuffled rows; the labels are in its column and in the names of folders."""
    taps = tuple(columns) if len(columns) > 1 else ("avgpool",)
    recipe = make_recipe(taps=taps)
    names = list(recipe.columns.values())
    vectors = dict(zip(names, columns.values(), strict=True))
    file = RecipeFile(
        recipe_id=recipe.recipe_id,
        recipe=recipe,
        shapes={name: features.shape[1:] for name, features in vectors.items()},
        golden={name: np.eye(4, features.shape[1]).tolist() for name, features in vectors.items()},
        made_with={"torch": "0"},
    )
    table = Table.create(f"file://{folder}", file)
    all_uris = uris or [uri_of(number, label) for number, label in enumerate(labels)]
    order = np.random.default_rng(seed).permutation(len(labels))
    parts = []
    for start in range(0, len(order), part_rows):
        at = order[start : start + part_rows]
        sides = pa.array([10] * len(at), pa.int32())
        fixed = [
            pa.array([all_uris[row] for row in at]),
            pa.array(["1"] * len(at)),
            pa.array([None if labels[row] is None else str(labels[row]) for row in at], pa.string()),
            sides,
            sides,
        ]
        rows = pa.table(
            [*fixed, *(vector_column(features[at], "full") for features in vectors.values()), pa.nulls(len(at), pa.string())],
            names=[*(field.name for field in FIXED_FIELDS), *vectors, "error"],
        )
        parts.append(write_part(table.uri, rows, status="ok", stem=f"p{start}", recipe_id=recipe.recipe_id))
    table.commit(Change(parts, table.parts()), app_id="test", sequence=table.version + 1, info={})
    return table


def config_for(folder: Path, **changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"table": str(folder / "table"), "out": str(folder / "model")} | changes)
