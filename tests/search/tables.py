"""Tables of made-up vectors with structure, and their plain NumPy neighbours."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.factories import make_recipe
from tlray.config import IndexConfig
from tlray.lake.table.parts import Change, Part, read_part, vector_column, vectors_of, write_part
from tlray.lake.table.schema import FIXED_FIELDS
from tlray.lake.table.table import Table
from tlray.recipe import RecipeFile
from tlray.search.build.build_index import index

DIMENSIONS = 32
CLUSTERS = 50


def recipe_file(dimensions: int = DIMENSIONS, **changes: object) -> RecipeFile:
    recipe = make_recipe(**changes)
    return RecipeFile(
        recipe_id=recipe.recipe_id,
        recipe=recipe,
        shapes={"embedding": (dimensions,)},
        golden={"embedding": np.eye(4, dimensions).tolist()},
        made_with={"torch": "0"},
    )


def vectors_for(numbers: Sequence[int], etag: str, dimensions: int = DIMENSIONS) -> np.ndarray:
    """A vector for each number: near the centre of its cluster, another one for another etag."""
    centres = np.random.default_rng(3).standard_normal((CLUSTERS, dimensions))
    rows = [np.random.default_rng([number, *etag.encode()]).standard_normal(dimensions) for number in numbers]
    return (centres[np.array(numbers) % CLUSTERS] + 0.7 * np.stack(rows)).astype(np.float32)


def rows_for(numbers: Sequence[int], etag: str = "1", folder: str = "train", dimensions: int = DIMENSIONS) -> pa.Table:
    count = len(numbers)
    columns = [
        pa.array([f"file:///photos/{folder}/{number:06d}.jpg" for number in numbers]),
        pa.array([etag] * count),
        pa.array([f"label {number % 5}" if number % 5 else None for number in numbers]),
        pa.array([10] * count, pa.int32()),
        pa.array([20] * count, pa.int32()),
        vector_column(vectors_for(numbers, etag, dimensions), "half"),
        pa.nulls(count, pa.string()),
    ]
    return pa.table(columns, names=[*(field.name for field in FIXED_FIELDS), "embedding", "error"])


class Bench:
    """A table that can be changed, and its index."""

    def __init__(self, folder: Path, dimensions: int = DIMENSIONS, **recipe: object) -> None:
        self.dimensions = dimensions
        self.table = Table.create(f"file://{folder}/table", recipe_file(dimensions, **recipe))
        self.index_path = folder / "index"
        self._sequence = 0

    def write(self, rows: pa.Table) -> Part:
        self._sequence += 1
        recipe_id = self.table.recipe_file.recipe_id
        return write_part(self.table.uri, rows, status="ok", stem=f"p{self._sequence}", recipe_id=recipe_id)

    def commit(self, add: Sequence[pa.Table], remove: Sequence[Part] = ()) -> list[Part]:
        parts = [self.write(rows) for rows in add]
        self._sequence += 1
        self.table.commit(Change(parts, remove), app_id="test", sequence=self._sequence, info={})
        return parts

    def fill(self, count: int, part_rows: int = 1000) -> list[Part]:
        starts = range(0, count, part_rows)
        return self.commit([rows_for(range(at, min(at + part_rows, count)), dimensions=self.dimensions) for at in starts])

    def config(self, **changes: object) -> IndexConfig:
        return IndexConfig(**({"table": self.table.uri, "out": str(self.index_path)} | changes))

    def index(self, **changes: object) -> dict:
        return index(self.config(**changes))

    def all(self) -> tuple[list[str], np.ndarray]:
        """URIs and vectors of the table as it is, read without the index."""
        table = Table.open(self.table.uri)
        rows = pa.concat_tables([read_part(table.uri, part.path, ["uri", "embedding"]) for part in table.parts()])
        return rows["uri"].to_pylist(), vectors_of(rows["embedding"])


def exact(queries_BD: np.ndarray, vectors_ND: np.ndarray, k: int, metric: str = "cosine") -> tuple[np.ndarray, np.ndarray]:
    """Neighbours and scores in float64 by definition."""
    queries_BD, vectors_ND = queries_BD.astype(np.float64), vectors_ND.astype(np.float64)
    if metric == "l2":
        scores_BN = -np.sqrt(((queries_BD[:, None] - vectors_ND[None]) ** 2).sum(axis=2))
    else:
        if metric == "cosine":
            queries_BD = queries_BD / np.linalg.norm(queries_BD, axis=1, keepdims=True)
            vectors_ND = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        scores_BN = queries_BD @ vectors_ND.T
    order_BK = np.argsort(-scores_BN, axis=1, kind="stable")[:, :k]
    scores_BK = np.take_along_axis(scores_BN, order_BK, axis=1)
    return order_BK, -scores_BK if metric == "l2" else scores_BK


def recall(found: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> float:
    return float(np.mean([len(set(one) & set(other)) / len(other) for one, other in zip(found, wanted, strict=True)]))
