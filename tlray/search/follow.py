"""Bring an index to where its table is: add and remove what changed, by the parts that the table's log names.

Parts never change, so rows in parts that both versions have are the same. What is left are the rows of parts that went and
of parts that came: a row of the same URI and etag in both has only moved (a rewrite, a compaction), any other is new or gone.
Vectors are read for new rows alone, and go into a small file beside the large one (`tlray.search.delta`). Once many have
gathered there, they are merged into the large file, and the recall is measured anew.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.config import IndexConfig
from tlray.errors import ConfigError, RecipeMismatchError, TableError
from tlray.lake.table import Table
from tlray.progress import say
from tlray.search.card import Card
from tlray.search.choose import Choice
from tlray.search.delta import Delta
from tlray.search.engine import BLOCK_ROWS, Engine
from tlray.search.exact import exact_neighbours
from tlray.search.files import put_file
from tlray.search.loading import load_index, load_rows
from tlray.search.measure import K, Probe, find_themselves, measure, tune
from tlray.search.publishing import Contents, Stopwatch, column_of, publish_delta, publish_whole
from tlray.search.rows import ROWS_SCHEMA, Rows, read_rows, with_ids
from tlray.search.vectors import ExactVectors, read_rows_features, save_vectors

MERGE_FRACTION = 0.1
"""Changes since the FAISS file was written, as a share of all rows, from which they are merged into it. A rule of thumb between
what every reader replays (a tenth of what a build adds) and what a merge writes; also the most by which an index may differ
from the one that its recall was measured on."""

UPDATE_QUERIES = 256
"""Fewer than a build's, as exact search is most of what a merge costs; the standard error is under a point. With 128, FAISS
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


@dataclass(frozen=True)
class _Update:
    """An index as it is to be.

    Attributes:
        rows: live rows.
        delta: all changes since the FAISS file was written.
        added: how many of these vectors this update brought.
        removed: ids that it takes away.
        dead: rows that are gone and whose vectors stay inside.
        next_id: over every id that was ever given.
    """

    rows: Rows
    delta: Delta
    added: int
    removed: np.ndarray
    dead: int
    next_id: int


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
        rows, delta = load_rows(index_uri, card, scratch)
        difference = compare(rows.table, live_parts(table), lambda paths: read_rows(table, paths))
    say(", ".join(f"{count} {name}" for name, count in difference.counts.items()))
    if not len(difference.kept) + len(difference.added):
        raise TableError(f"{table.uri} version {table.version} has no embeddings any more; the index is left as it is")
    reason = _needs_rebuild(card, difference)  # before vectors are read: a table that grew much would not fit in memory
    if reason:
        return None, difference.counts, reason
    with watch.stage("read"):
        after = _after(table, card, delta, difference)
    if after.delta.size <= MERGE_FRACTION * len(after.rows) and config.recall_target == card.recall_target:
        made: Card | None = publish_delta(
            table, index_uri, card, after.rows, after.delta, dead=after.dead, next_id=after.next_id, watch=watch
        )
    else:
        made, reason = _merge(table, config, index_uri, card, after, watch, scratch)
    return made, difference.counts, reason


def _after(table: Table, card: Card, delta: Delta, difference: Difference) -> _Update:
    features_BD = read_rows_features(table.uri, card.column, difference.added)
    next_id = card.next_id + len(features_BD)
    added = with_ids(difference.added, np.arange(card.next_id, next_id))
    rows = Rows(pa.concat_tables([difference.kept, added]).cast(ROWS_SCHEMA))
    dead = _dead(card, difference)
    return _Update(rows, delta.then(difference.removed, features_BD), len(features_BD), difference.removed, dead, next_id)


def _dead(card: Card, difference: Difference) -> int:
    """Without removal ids number all vectors that were ever added."""
    if Engine.make(card.factory, card.dimensions, card.metric).removes:
        return 0
    return card.next_id - len(difference.kept)


def _needs_rebuild(card: Card, difference: Difference) -> str:
    rows, dead = len(difference.kept) + len(difference.added), _dead(card, difference)
    if dead > MAX_DEAD_FRACTION * (rows + dead):
        return f"{dead} of {rows + dead} vectors would be dead, more than {MAX_DEAD_FRACTION:.0%}"
    if rows > MAX_GROWTH * card.built_rows:
        return f"{rows} rows are more than {MAX_GROWTH:g} times the {card.built_rows} that it was built for"
    return ""


def _merge(
    table: Table, config: IndexConfig, index_uri: str, card: Card, after: _Update, watch: Stopwatch, scratch: Path
) -> tuple[Card | None, str]:
    """Write the FAISS file with all that changed since, once its recall was measured; or say why not."""
    with watch.stage("load"):
        index = load_index(index_uri, card, scratch)
    engine, rows = index.engine, after.rows
    with watch.stage("change"):
        new_ids = np.arange(after.next_id - after.added, after.next_id)
        engine.remove(after.removed)
        if after.added:
            engine.add(engine.prepared(after.delta.added_ND[-after.added :]), int(new_ids[0]))
        stored = None if index.stored is None else index.stored.with_delta(after.rows, after.delta)
    exact = ExactVectors(engine, rows, stored, table.uri, card.column)
    with watch.stage("measure"):
        probe = _probe(engine, rows, exact)
        parameters = card.parameters
        if config.recall_target != card.recall_target:
            mode = config.rerank if engine.is_exact or stored is not None else "never"
            parameters = tune(engine, exact, probe, target=config.recall_target, mode=mode)
        new = new_ids[np.linspace(0, after.added - 1, min(CHECKED_NEW_ROWS, after.added)).astype(np.int64)]
        if len(new):
            parameters = find_themselves(engine, exact, parameters, new, exact.take(new))
        quality = measure(engine, exact, probe, parameters, card.quality.reconstruction_error)
    if quality.recall_at_10 + quality.standard_error < config.recall_target:
        return None, f"recall fell to {quality.recall_at_10}, under {config.recall_target}"
    vectors = None
    if stored is not None:
        vectors = scratch / "vectors.npy"
        starts = range(0, len(rows), BLOCK_ROWS)
        blocks = (exact.take(rows.ids_N[start : start + BLOCK_ROWS]) for start in starts)
        save_vectors(vectors, blocks, (len(rows), card.dimensions))
    with watch.stage("save"):
        engine.save(scratch / "index.faiss")
        file = put_file(index_uri, "faiss", scratch / "index.faiss")
    contents = Contents(engine, file, rows, parameters, quality, vectors, after.next_id, card.built_rows)
    choice = Choice(card.factory, card.reasons)
    return publish_whole(table, config, index_uri, card.version + 1, contents, choice, watch), ""


def _probe(engine: Engine, rows: Rows, exact: ExactVectors) -> Probe:
    ids_B = np.sort(np.random.default_rng(len(rows)).choice(rows.ids_N, min(UPDATE_QUERIES, len(rows)), replace=False))
    queries_BD = exact.take(ids_B)
    if engine.is_exhaustive:
        return Probe.exhaustive(ids_B, queries_BD, len(rows))
    exact_ids_BK, nearness_BK = exact_neighbours(queries_BD, exact.blocks(), K + 1, engine.metric)
    return Probe.of(ids_B, queries_BD, exact_ids_BK, nearness_BK, len(rows))
