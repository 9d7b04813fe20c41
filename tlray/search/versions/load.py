"""Open an index: every file checked against its card, the recipe against the card's, before anything is read from it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tlray.errors import IndexCorruptError
from tlray.lake.table.table import RECIPE_NAME
from tlray.recipe import RecipeFile
from tlray.search.neighbours.faiss_index import FaissIndex
from tlray.search.rows.row_table import RowTable
from tlray.search.versions.card import Card
from tlray.search.versions.changes import VectorChanges
from tlray.search.versions.exact_vectors import StoredVectors
from tlray.search.versions.files import get_file


@dataclass(frozen=True)
class LoadedIndex:
    """One version of an index in memory.

    Attributes:
        card: what it is.
        index: the FAISS index, with all that came and without what went since its file was written.
        rows: its live rows.
        changes: these changes.
        recipe_file: the table's, with the golden vectors.
        stored: the exact vectors, memory-mapped; None where there are none.
    """

    card: Card
    index: FaissIndex
    rows: RowTable
    changes: VectorChanges
    recipe_file: RecipeFile
    stored: StoredVectors | None


def load_rows(index_uri: str, card: Card, scratch: Path) -> tuple[RowTable, VectorChanges]:
    """Check and read what says which rows there are, without the large files.

    Raises:
        IndexCorruptError: a file is not what the card says.
    """
    rows = RowTable.from_bytes(get_file(index_uri, card.files["rows"], scratch).read_bytes())
    if "delta" not in card.files:
        return rows, VectorChanges.none(card.base_next_id, card.dimensions)
    data = get_file(index_uri, card.files["delta"], scratch).read_bytes()
    return rows, VectorChanges.from_bytes(data, card.base_next_id, f"{index_uri}: {card.files['delta'].name}")


def load_index(index_uri: str, card: Card, scratch: Path) -> LoadedIndex:
    """Check and read the files of a version.

    Args:
        index_uri: of the index.
        card: of the version.
        scratch: a folder for copies of what is not on this machine; needed for as long as the index is in use.

    Raises:
        IndexCorruptError: a file is not what the card says.
    """
    rows, changes = load_rows(index_uri, card, scratch)
    large = {kind: get_file(index_uri, file, scratch) for kind, file in card.files.items() if kind not in ("rows", "delta")}
    recipe_file = RecipeFile.from_json(large["recipe"].read_bytes(), f"{index_uri}: {RECIPE_NAME}")
    index = FaissIndex.load(large["faiss"], card.metric)
    index.set_default(card.parameters)
    index.reach(np.array(card.unreached, np.int64))
    changes.apply(index, rows, card.parameters)
    stored = StoredVectors(np.load(large["vectors"], mmap_mode="r"), rows, changes, card.metric) if "vectors" in large else None
    shape_is_right = index.dimensions == card.dimensions and index.total == card.rows + card.dead and len(rows) == card.rows
    if not shape_is_right or recipe_file.recipe_id != card.recipe_id or (stored is not None and not stored.is_whole):
        raise IndexCorruptError(
            f"the files of {index_uri} version {card.version} do not belong together: the card says {card.rows} rows of "
            f"{card.dimensions} dimensions and recipe {card.recipe_id[:12]}; build the index anew with `tlray index --rebuild`"
        )
    return LoadedIndex(card, index, rows, changes, recipe_file, stored)
