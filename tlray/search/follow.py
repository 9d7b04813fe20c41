"""Bring an index to where its table is: add and remove what changed, by the parts that the table's log names.

Parts never change, so rows in parts that both versions have are the same. What is left are the rows of parts that went and
of parts that came: a row of the same URI and etag in both has only moved (a rewrite, a compaction), any other is new or gone.
Vectors are read for new rows alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.config import IndexConfig
from tlray.errors import ConfigError, RecipeMismatchError, TableError
from tlray.lake.table import Table
from tlray.progress import say
from tlray.search.build import Contents, Stopwatch, column_of, publish_version
from tlray.search.card import Card
from tlray.search.choose import Choice
from tlray.search.engine import BLOCK_ROWS, Engine, exact_neighbours
from tlray.search.loading import LoadedIndex, load_index
from tlray.search.measure import K, Probe, find_themselves, measure
from tlray.search.rows import ROWS_SCHEMA, Rows, read_rows, with_ids
from tlray.search.vectors import ExactVectors, in_blocks, read_rows_features, save_vectors

UPDATE_QUERIES = 256
"""Fewer than a build's, as exact search is most of what an update costs; the standard error is under a point. With 128, FAISS
1.15 does not use matrix products and takes three times as long."""

CHECKED_NEW_ROWS = 2048
"""New rows, evenly spread, that are searched for by their own vectors."""

MAX_DEAD_FRACTION = 0.2
MAX_GROWTH = 2.0
"""A rule of thumb: lists and links were chosen for the rows of the build, and grow with their square root (FAISS wiki)."""


@dataclass(frozen=True)
class Difference:
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


def compare(rows: pa.Table, live_parts: Sequence[str], read: Callable[[Sequence[str]], pa.Table]) -> Difference:
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
    at_old = pc.index_in(_keys(new), value_set=_keys(old))
    has_moved = pc.is_valid(at_old)
    moved = with_ids(new.filter(has_moved), old["id"].take(at_old.filter(has_moved)).to_numpy())
    found = np.zeros(len(old), bool)
    found[at_old.filter(has_moved).to_numpy()] = True
    kept = pa.concat_tables([rows.filter(stays), moved]).sort_by("id")
    return Difference(kept, old["id"].to_numpy()[~found], new.filter(pc.invert(has_moved)), len(moved))


def _keys(rows: pa.Table) -> pa.Array:
    """What says that two rows are the same image of the same bytes."""
    keys = pc.binary_join_element_wise(rows["uri"], pc.fill_null(rows["etag"], ""), "\n")
    return keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys


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
    return [part.path for part in table.parts() if part.status == "ok"]


def update(
    table: Table, config: IndexConfig, index_uri: str, card: Card, scratch: Path
) -> tuple[Card | None, dict[str, int], str]:
    """Publish a version of an index that shows the table as it is.

    Args:
        table: at the version to show.
        config: of the command.
        index_uri: of the index.
        card: of its newest version.
        scratch: a folder for temporary files.

    Returns:
        The new version's card, what changed, and ""; or None and why the index must be built anew.

    Raises:
        TableError: the table has no embeddings any more.
        IndexCorruptError: a file of the index is damaged.
    """
    watch = Stopwatch()
    with watch.stage("compare"):
        index = load_index(index_uri, card, scratch)
        difference = compare(index.rows.table, live_parts(table), lambda paths: read_rows(table, paths))
    say(", ".join(f"{count} {name}" for name, count in difference.counts.items()))
    reason = _needs_rebuild(index, difference, table)
    if reason:
        return None, difference.counts, reason
    engine = index.engine
    with watch.stage("read"):
        features_BD = read_rows_features(table.uri, card.column, difference.added)
    with watch.stage("change"):
        engine.remove(difference.removed)
        if len(features_BD):
            engine.add(engine.prepared(features_BD), card.next_id)
        next_id = card.next_id + len(features_BD)
        added = with_ids(difference.added, np.arange(card.next_id, next_id))
        rows = Rows(pa.concat_tables([difference.kept, added]).cast(ROWS_SCHEMA))
        vectors = _new_vectors(index, rows, features_BD, scratch)
    exact = ExactVectors(engine, rows, None if vectors is None else np.load(vectors, mmap_mode="r"), table.uri, card.column)
    quality, parameters = card.quality, card.parameters
    if difference.added or len(difference.removed):
        with watch.stage("measure"):
            new = np.linspace(0, len(features_BD) - 1, min(CHECKED_NEW_ROWS, len(features_BD))).astype(np.int64)
            new_BD = engine.prepared(features_BD[new])
            parameters = find_themselves(engine, exact.take, parameters, card.next_id + new, new_BD)
            quality = measure(engine, exact.take, _probe(engine, rows, exact), parameters, quality.reconstruction_error)
        if quality.recall_at_10 + quality.standard_error < config.recall_target:
            return None, difference.counts, f"recall fell to {quality.recall_at_10}, under {config.recall_target}"
    contents = Contents(engine, rows, parameters, quality, vectors, next_id, card.built_rows)
    choice = Choice(card.factory, card.reasons)
    return publish_version(table, config, index_uri, card.version + 1, contents, choice, watch, scratch), difference.counts, ""


def _needs_rebuild(index: LoadedIndex, difference: Difference, table: Table) -> str:
    rows = len(difference.kept) + len(difference.added)
    if not rows:
        raise TableError(f"{table.uri} version {table.version} has no embeddings any more; the index is left as it is")
    dead = index.engine.total - len(index.rows) + len(difference.removed)
    if not index.engine.removes and dead > MAX_DEAD_FRACTION * (rows + dead):
        return f"{dead} of {rows + dead} vectors would be dead, more than {MAX_DEAD_FRACTION:.0%}"
    if rows > MAX_GROWTH * index.card.built_rows:
        return f"{rows} rows are more than {MAX_GROWTH:g} times the {index.card.built_rows} that it was built for"
    return ""


def _new_vectors(index: LoadedIndex, rows: Rows, features_BD: np.ndarray, scratch: Path) -> Path | None:
    """The vectors file of the new version: the kept rows' from the old one, then the new rows'."""
    stored_ND = index.stored_ND
    if stored_ND is None:
        return None
    kept = index.rows.positions(rows.ids_N[: len(rows) - len(features_BD)])
    path = scratch / "vectors.npy"

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(kept), BLOCK_ROWS):
            yield np.asarray(stored_ND[kept[start : start + BLOCK_ROWS]], np.float32)
        yield from in_blocks(features_BD)

    save_vectors(path, blocks, (len(rows), stored_ND.shape[1]))
    return path


def _probe(engine: Engine, rows: Rows, exact: ExactVectors) -> Probe:
    ids_B = np.sort(np.random.default_rng(len(rows)).choice(rows.ids_N, min(UPDATE_QUERIES, len(rows)), replace=False))
    queries_BD = exact.take(ids_B)
    exact_ids_BK, nearness_BK = exact_neighbours(queries_BD, exact.blocks(), K + 1, engine.metric)
    return Probe.of(ids_B, queries_BD, exact_ids_BK, nearness_BK, len(rows))
