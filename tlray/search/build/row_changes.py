"""How a table differs from an index of it, by the parts that the table's log names.

Parts never change, so rows in parts that both have are the same. What is left are the rows of parts that went and of parts that
came: a row of the same URI and etag in both has only moved (a rewrite, a compaction), any other is new or gone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.config import IndexConfig
from tlray.errors import ConfigError, RecipeMismatchError
from tlray.lake.table.columns import column_of
from tlray.lake.table.table import Table
from tlray.search.rows.row_table import with_ids
from tlray.search.versions.card import Card


@dataclass(frozen=True)
class RowChanges:
    """How a table differs from its index.

    Attributes:
        kept: rows that stay, with their ids, labels and places as they are now.
        removed: ids of rows that are gone or have other bytes.
        added: rows that are new, without ids.
        moved: rows that only changed place or label.
    """

    kept: pa.Table
    removed: np.ndarray
    added: pa.Table
    moved: int

    @property
    def counts(self) -> dict[str, int]:
        """Added, removed and moved rows."""
        return {"added": len(self.added), "removed": len(self.removed), "moved": self.moved}


def row_changes(rows: pa.Table, live_parts: Sequence[str], read: Callable[[Sequence[str]], pa.Table]) -> RowChanges:
    """Hold an index's rows against a table's parts.

    Args:
        rows: of the index, ROWS_SCHEMA.
        live_parts: paths of the table's parts of embeddings.
        read: rows of some parts, ROWS_SCHEMA without `id`.
    """
    stays = pc.is_in(rows["part"], value_set=pa.array(live_parts, pa.string()))
    old = rows.filter(pc.invert(stays))
    known = set(pc.unique(rows["part"]).to_pylist())
    new = read([path for path in live_parts if path not in known])
    at_old = pc.index_in(new["uri"], value_set=old["uri"])  # a table has one row of a URI
    has_moved = pc.equal(pc.fill_null(new["etag"], ""), pc.fill_null(old["etag"], "").take(at_old)).fill_null(False)
    ids_old, at_moved = old["id"].to_numpy(), at_old.filter(has_moved).to_numpy()
    is_gone = np.ones(len(old), bool)
    is_gone[at_moved] = False
    moved = with_ids(new.filter(has_moved), ids_old[at_moved])
    kept = pa.concat_tables([rows.filter(stays), moved]).combine_chunks()
    kept = kept.take(pa.array(np.argsort(kept["id"].to_numpy(), kind="stable")))  # merges what is in order; `sort_by` does not
    return RowChanges(kept, ids_old[is_gone], new.filter(pc.invert(has_moved)), len(moved))


def check_same(card: Card, table: Table, config: IndexConfig, index_uri: str) -> None:
    """Refuse to follow a table of another recipe, or to make another kind of index of one that is there.

    Raises:
        RecipeMismatchError: another recipe, or another of its columns.
        ConfigError: another metric or factory.
    """
    if table.recipe_file.recipe_id != card.recipe_id:
        raise RecipeMismatchError(
            f"{index_uri} is an index of recipe {card.recipe_id[:12]}, but {table.uri} holds recipe "
            f"{table.recipe_file.recipe_id[:12]}; name another place for its index"
        )
    if column_of(table, config.column) != card.column:
        raise RecipeMismatchError(f"{index_uri} is an index of column {card.column}; name another place for {config.column}'s")
    if config.metric != card.metric or config.factory not in ("auto", card.factory):
        raise ConfigError(
            f"{index_uri} is {card.factory} by {card.metric}, the configuration says {config.factory} by {config.metric}; "
            "give --rebuild to replace it, or name another place"
        )


def live_parts(table: Table) -> list[str]:
    """Paths of the parts that hold embeddings."""
    return [part.path for part in table.parts("ok")]
