"""Open an index: every file checked against its card, the recipe against the card's, before anything is read from it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tlray.errors import IndexCorruptError
from tlray.lake.table.table import RECIPE_NAME
from tlray.recipe import RecipeFile
from tlray.search.neighbours.faiss_index import FaissIndex
from tlray.search.rows.row_columns import RowColumns
from tlray.search.rows.row_table import RowTable
from tlray.search.versions.card import Card
from tlray.search.versions.changes import VectorChanges
from tlray.search.versions.exact_vectors import IndexVectors, StoredVectors
from tlray.search.versions.files import FileKind, get_file

_OF_ROWS: tuple[FileKind, ...] = ("rows", "delta", "columns")
_LOOKED_AT = 16
"""First floats of a vector, one line of the processor's cache, which are looked at before all of them."""


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
    if "columns" in card.files:
        columns = RowColumns.open(get_file(index_uri, card.files["columns"], scratch))
        if len(columns) != len(rows):
            raise IndexCorruptError(
                f"{index_uri} has columns of {len(columns)} rows, but {len(rows)} rows; build it anew: `tlray index --rebuild`"
            )
        rows = RowTable(rows.table, columns)
    if "delta" not in card.files:
        return rows, VectorChanges.none(card.base_next_node, card.dimensions)
    data = get_file(index_uri, card.files["delta"], scratch).read_bytes()
    return rows, VectorChanges.from_bytes(data, card.base_next_node, f"{index_uri}: {card.files['delta'].name}")


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
    large = {kind: get_file(index_uri, file, scratch) for kind, file in card.files.items() if kind not in _OF_ROWS}
    recipe_file = RecipeFile.from_json(large["recipe"].read_bytes(), f"{index_uri}: {RECIPE_NAME}")
    index = FaissIndex.load(large["faiss"], card.metric)
    index.set_default(card.parameters)
    index.reach(np.array(card.unreached, np.int64))
    changes.apply(index, rows, card.parameters)
    stored = StoredVectors(np.load(large["vectors"], mmap_mode="r"), rows, changes, card.metric) if "vectors" in large else None
    counts = index.dimensions, index.total, len(rows), len(rows.nodes_U)
    counts_are_right = counts == (card.dimensions, card.nodes + card.dead, card.rows, card.nodes)
    if not counts_are_right or recipe_file.recipe_id != card.recipe_id or (stored is not None and not stored.is_whole):
        raise IndexCorruptError(
            f"the files of {index_uri} version {card.version} do not belong together: the card says {card.rows} rows of "
            f"{card.dimensions} dimensions and recipe {card.recipe_id[:12]}; build the index anew with `tlray index --rebuild`"
        )
    if not card.zeros_are_apart:
        rows = rows.with_zeros_apart(_zero_nodes(index, rows, stored, card))
    return LoadedIndex(card, index, rows, changes, recipe_file, stored)


def _zero_nodes(index: FaissIndex, rows: RowTable, stored: StoredVectors | None, card: Card) -> np.ndarray:
    """All-zero vectors in an index by cosine that has them among the others; none where it has only codes of them."""
    found = [np.empty(0, np.int64)]
    if stored is None and not index.kind.is_exact:
        return found[0]
    for nodes_B, vectors_BD in IndexVectors(index, rows, stored, card.table, card.column).blocks():
        is_likely_B = ~vectors_BD[:, :_LOOKED_AT].any(axis=1)
        found.append(nodes_B[is_likely_B][~vectors_BD[is_likely_B].any(axis=1)])
    return np.concatenate(found)
