"""How a table differs from an index of it, by the parts that the table's log names.

Parts never change, so rows in parts that both have are the same. What is left are the rows of parts that went and of parts that
came: a row of the same URI and etag in both has only moved (a rewrite, a compaction), any other is new or gone.

Shape legend: B new rows, M asked for, K known rows, N new nodes, D dimensions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.config import IndexConfig
from tlray.errors import ConfigError, RecipeMismatchError
from tlray.lake.table.table import Table
from tlray.search.neighbours.exact import prepared
from tlray.search.rows.copies import NO_NODE, digests_of, nodes_of
from tlray.search.rows.from_table import keyed, read_row_vectors
from tlray.search.rows.row_table import with_ids
from tlray.search.versions.card import Card


@dataclass(frozen=True)
class RowChanges:
    """How a table differs from its index.

    Attributes:
        kept: rows that stay, with their ids, labels and places as they are now.
        removed: rows that are gone or have other bytes, as they were.
        added: rows that are new, PLACED_SCHEMA.
        moved: rows that only changed place or label.
    """

    kept: pa.Table
    removed: pa.Table
    added: pa.Table
    moved: int

    @property
    def counts(self) -> dict[str, int]:
        """How many rows were added, removed and moved."""
        return {"added": len(self.added), "removed": len(self.removed), "moved": self.moved}


def row_changes(rows: pa.Table, live_parts: Sequence[str], read: Callable[[Sequence[str]], pa.Table]) -> RowChanges:
    """Hold an index's rows against a table's parts.

    Args:
        rows: of the index, ROWS_SCHEMA.
        live_parts: paths of the table's parts of embeddings.
        read: gives the rows of some parts, PLACED_SCHEMA.
    """
    stays = pc.is_in(rows["part"], value_set=pa.array(live_parts, pa.string()))
    old = rows.filter(pc.invert(stays))
    known = set(pc.unique(rows["part"]).to_pylist())
    new = read([path for path in live_parts if path not in known])
    at_old = pc.index_in(new["uri"], value_set=old["uri"])  # a table has one row of a URI
    has_moved = pc.equal(pc.fill_null(new["etag"], ""), pc.fill_null(old["etag"], "").take(at_old)).fill_null(False)
    at_moved = at_old.filter(has_moved).to_numpy()
    is_gone = np.ones(len(old), bool)
    is_gone[at_moved] = False
    same = old.take(pa.array(at_moved))
    moved = with_ids(new.filter(has_moved), same["id"], same["node"], same["key"])
    kept = pa.concat_tables([rows.filter(stays), moved]).combine_chunks()
    kept = kept.take(pa.array(np.argsort(kept["id"].to_numpy(), kind="stable")))  # merges what is in order; `sort_by` does not
    return RowChanges(kept, old.filter(pa.array(is_gone)), new.filter(pc.invert(has_moved)), len(moved))


def number_added(table_uri: str, card: Card, changes: RowChanges) -> tuple[pa.Table, np.ndarray]:
    """Number the rows that a table has and its index has not.

    Their ids are the next ones; their nodes, too, or those of rows that have the very same vector.

    Args:
        table_uri: the table.
        card: of the index's newest version.
        changes: how the table differs from it.

    Returns:
        The added rows, ROWS_SCHEMA; and features_ND, the vectors of their new nodes, in order, as the table has them.

    Raises:
        TableError: a part is gone: the table moved on and was vacuumed.
    """
    features_BD = read_row_vectors(table_uri, card.column, changes.added)
    new = keyed(np.array(features_BD), card.metric)
    known = _rows_with_keys(changes.kept, new.keys_N)

    def digests(at_M: np.ndarray) -> np.ndarray:
        among_known = at_M[at_M < len(known)]
        known_KD = prepared(read_row_vectors(table_uri, card.column, known.take(pa.array(among_known))), card.metric)
        return np.concatenate([digests_of(known_KD), digests_of(new.vectors_ND[at_M[len(among_known) :] - len(known)])])

    keys = np.concatenate([known["key"].to_numpy(), new.keys_N])
    nodes = nodes_of(keys, np.concatenate([np.zeros(len(known), bool), new.is_zero_N]), digests)
    is_new = nodes.first_row_U >= len(known)
    numbers = card.next_node + np.cumsum(is_new) - 1
    numbers[~is_new] = known["node"].to_numpy()[nodes.first_row_U[~is_new]]
    of_row_B = nodes.of_row_N[len(known) :]
    nodes_B = np.where(of_row_B == NO_NODE, NO_NODE, numbers[of_row_B]) if len(numbers) else of_row_B
    ids_B = np.arange(card.next_id, card.next_id + len(new.keys_N))
    return with_ids(changes.added, ids_B, nodes_B, new.keys_N), features_BD[nodes.first_row_U[is_new] - len(known)]


def _rows_with_keys(kept: pa.Table, keys_B: np.ndarray) -> pa.Table:
    """One row of each kept node whose key is among those given."""
    there = kept.filter(pc.and_(pc.is_in(kept["key"], value_set=pa.array(keys_B)), pc.not_equal(kept["node"], NO_NODE)))
    _, first = np.unique(there["node"].to_numpy(), return_index=True)
    return there.take(pa.array(first))


def check_same(card: Card, table: Table, config: IndexConfig, index_uri: str) -> None:
    """Refuse to follow a table of another recipe, or to make another kind of index of one that is there.

    Raises:
        RecipeMismatchError: another recipe, or another of its columns.
        ConfigError: another metric, factory or `ef_construction`.
    """
    if table.recipe_file.recipe_id != card.recipe_id:
        raise RecipeMismatchError(
            f"{index_uri} is an index of recipe {card.recipe_id[:12]}, but {table.uri} holds recipe "
            f"{table.recipe_file.recipe_id[:12]}; name another place for its index"
        )
    if table.column_of(config.column) != card.column:
        raise RecipeMismatchError(f"{index_uri} is an index of column {card.column}; name another place for {config.column}'s")
    if config.metric != card.metric or config.factory not in ("auto", card.factory):
        raise ConfigError(
            f"{index_uri} is {card.factory} by {card.metric}, the configuration says {config.factory} by {config.metric}; "
            "give --rebuild to replace it, or name another place"
        )
    if config.ef_construction not in (None, card.ef_construction):
        raise ConfigError(
            f"{index_uri} is built with an ef_construction of {card.ef_construction or 'FAISS itself'}, the configuration says "
            f"{config.ef_construction}; give --rebuild to replace it, or name another place"
        )


def live_parts(table: Table) -> list[str]:
    """Paths of the parts that hold embeddings."""
    return [part.path for part in table.parts("ok")]
