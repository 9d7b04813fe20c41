"""Open an index: every file checked against its card, the recipe against the card's, before anything is read from it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tlray.errors import IndexCorruptError
from tlray.lake.table import RECIPE_NAME
from tlray.recipe import RecipeFile
from tlray.search.card import Card, get_file
from tlray.search.engine import Engine
from tlray.search.rows import Rows


@dataclass(frozen=True)
class LoadedIndex:
    """One version of an index in memory.

    Attributes:
        card: what it is.
        engine: the FAISS index.
        rows: its live rows.
        recipe_file: the table's, with the golden vectors.
        stored_ND: the vectors file, memory-mapped, in the rows' order; None where there is none.
    """

    card: Card
    engine: Engine
    rows: Rows
    recipe_file: RecipeFile
    stored_ND: np.ndarray | None


def load_index(index_uri: str, card: Card, scratch: Path) -> LoadedIndex:
    """Check and read the files of a version.

    Args:
        index_uri: of the index.
        card: of the version.
        scratch: a folder for copies of what is not on this machine; needed for as long as the index is in use.

    Raises:
        IndexCorruptError: a file is not what the card says.
    """
    paths = {kind: get_file(index_uri, file, scratch) for kind, file in card.files.items()}
    recipe_file = RecipeFile.from_json(paths["recipe"].read_bytes(), f"{index_uri}: {RECIPE_NAME}")
    engine = Engine.load(paths["faiss"], card.metric)
    rows = Rows.from_bytes(paths["rows"].read_bytes())
    stored_ND = np.load(paths["vectors"], mmap_mode="r") if "vectors" in paths else None
    shape_is_right = engine.index.d == card.dimensions and engine.total == card.rows + card.dead and len(rows) == card.rows
    if not shape_is_right or recipe_file.recipe_id != card.recipe_id or (stored_ND is not None and len(stored_ND) != len(rows)):
        raise IndexCorruptError(
            f"the files of {index_uri} version {card.version} do not belong together: the card says {card.rows} rows of "
            f"{card.dimensions} dimensions and recipe {card.recipe_id[:12]}; build the index anew with `tlray index --rebuild`"
        )
    return LoadedIndex(card, engine, rows, recipe_file, stored_ND)
