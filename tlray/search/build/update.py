"""Bring an index to where its table is: add and remove what changed, by the parts that the table's log names.

What changed is told without reading vectors (`tlray.search.build.table_diff`). They are read for new rows alone, and go into
a small file beside the large one (`tlray.search.versions.changes`). Once many have gathered there, they are merged into the
large file. The recall is measured anew then, and before it where new rows may not suit what was trained for others
(`tlray.search.build.remeasure`).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from tlray.config import IndexConfig
from tlray.errors import TableError
from tlray.lake.table.table import Table
from tlray.progress import say
from tlray.search.build.remeasure import is_due
from tlray.search.build.table_diff import Difference, compare, live_parts
from tlray.search.neighbours.exact import exact_neighbours
from tlray.search.neighbours.factory import Choice
from tlray.search.neighbours.faiss_index import BLOCK_ROWS, Engine
from tlray.search.neighbours.parameters import Parameters, Quality
from tlray.search.neighbours.recall import K, Probe, find_themselves, measure, tune
from tlray.search.neighbours.row_table import ROWS_SCHEMA, Rows, read_rows, with_ids
from tlray.search.versions.card import Card
from tlray.search.versions.changes import Delta
from tlray.search.versions.exact_vectors import ExactVectors, read_rows_features, save_vectors
from tlray.search.versions.files import FileKind, IndexFile, put_file
from tlray.search.versions.load import load_index, load_rows
from tlray.search.versions.publish import Contents, publish_delta, publish_whole
from tlray.search.versions.stopwatch import Stopwatch

MERGE_FRACTION = 0.1
"""Changes since the FAISS file was written, as a share of all rows, from which they are merged into it. A rule of thumb between
what every reader replays (a tenth of what a build adds) and what a merge writes; also the most by which an index may differ
from the one that its recall was measured on."""

UPDATE_QUERIES = 256
"""Fewer than a build's, as exact search is most of what measuring costs; the standard error is under a point. With 128, FAISS
1.15 does not use matrix products and takes three times as long."""

CHECKED_NEW_ROWS = 2048
"""New rows, evenly spread, that are searched for by their own vectors."""

MAX_DEAD_FRACTION = 0.2
MAX_GROWTH = 2.0
"""A rule of thumb: lists and links were chosen for the rows of the build, and grow with their square root (FAISS wiki)."""

MAX_LOSS = 0.1
"""Of the recall of a build that could not reach its target. A rule of thumb: such a recall falls as rows come, and would after
another build as well."""


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
    merges = after.delta.size > MERGE_FRACTION * len(after.rows) or config.recall_target != card.recall_target
    with watch.stage("check"):
        measures = merges or is_due(index_uri, card, len(after.rows), delta, after.delta, scratch)
    if measures:
        measured = _measured(table, config, index_uri, card, after, watch, scratch)
        reason = _needs_another_build(card, measured.quality, config.recall_target)
        if reason:
            return None, difference.counts, reason
        if merges:
            return _merge(table, config, index_uri, card, after, measured, watch, scratch), difference.counts, ""
        found = {"parameters": measured.parameters, "quality": measured.quality, "measured_version": card.version + 1}
        card = card.model_copy(update=found)
    made = publish_delta(table, index_uri, card, after.rows, after.delta, dead=after.dead, next_id=after.next_id, watch=watch)
    return made, difference.counts, ""


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
    if rows > MAX_GROWTH * card.built.rows:
        return f"{rows} rows are more than {MAX_GROWTH:g} times the {card.built.rows} that it was built for"
    return ""


def _needs_another_build(card: Card, quality: Quality, target: float) -> str:
    """Whether the recall fell under the target; or where a build for it did not reach it, far under what that one reached."""
    least = target
    if target == card.recall_target and card.built.recall_at_10 < target:
        least = round((1 - MAX_LOSS) * card.built.recall_at_10, 4)
    fell = quality.recall_at_10 + quality.standard_error < least
    return f"recall fell to {quality.recall_at_10}, under {least}" if fell else ""


@dataclass(frozen=True)
class _Measured:
    """An index with all changes in memory, and how good it is.

    Attributes:
        engine: the FAISS index.
        exact: the rows' vectors.
        is_stored: whether these are in a file beside the index.
        parameters: of a search.
        quality: as measured.
    """

    engine: Engine
    exact: ExactVectors
    is_stored: bool
    parameters: Parameters
    quality: Quality


def _measured(
    table: Table, config: IndexConfig, index_uri: str, card: Card, after: _Update, watch: Stopwatch, scratch: Path
) -> _Measured:
    with watch.stage("load"):
        index = load_index(index_uri, card, scratch)
    engine, rows = index.engine, after.rows
    with watch.stage("change"):
        new_ids = np.arange(after.next_id - after.added, after.next_id)
        engine.remove(after.removed)
        if after.added:
            engine.add(engine.prepared(after.delta.added_ND[-after.added :]), int(new_ids[0]))
        after.delta.reach(engine, rows, card.parameters)
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
    return _Measured(engine, exact, stored is not None, parameters, quality)


def _merge(
    table: Table,
    config: IndexConfig,
    index_uri: str,
    card: Card,
    after: _Update,
    measured: _Measured,
    watch: Stopwatch,
    scratch: Path,
) -> Card:
    """Write the FAISS file with all that changed since."""
    engine, rows = measured.engine, after.rows
    files: dict[FileKind, IndexFile] = {kind: file for kind, file in card.files.items() if kind == "centres"}
    with watch.stage("store"):
        engine.save(scratch / "index.faiss")
        files["faiss"] = put_file(index_uri, "faiss", scratch / "index.faiss")
        if measured.is_stored:
            starts = range(0, len(rows), BLOCK_ROWS)
            blocks = (measured.exact.take(rows.ids_N[start : start + BLOCK_ROWS]) for start in starts)
            save_vectors(scratch / "vectors.npy", blocks, (len(rows), card.dimensions))
            files["vectors"] = put_file(index_uri, "vectors", scratch / "vectors.npy")
    contents = Contents(engine, files, rows, measured.parameters, measured.quality, after.next_id, card.built)
    return publish_whole(table, config, index_uri, card.version + 1, contents, Choice(card.factory, card.reasons), watch)


def _probe(engine: Engine, rows: Rows, exact: ExactVectors) -> Probe:
    ids_B = np.sort(np.random.default_rng(len(rows)).choice(rows.ids_N, min(UPDATE_QUERIES, len(rows)), replace=False))
    queries_BD = exact.take(ids_B)
    if engine.is_exhaustive:
        return Probe.exhaustive(ids_B, queries_BD, len(rows))
    exact_ids_BK, nearness_BK = exact_neighbours(queries_BD, exact.blocks(), K + 1, engine.metric)
    return Probe.of(ids_B, queries_BD, exact_ids_BK, nearness_BK, len(rows))
