"""Bring an index to where its table is: add and remove what changed, by the parts that the table's log names.

What changed is told without reading vectors (`tlray.search.build.row_changes`). They are read for new rows alone, and go into
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
from tlray.search.build.row_changes import RowChanges, live_parts, number_added, row_changes
from tlray.search.neighbours.exact import exact_neighbours, prepared
from tlray.search.neighbours.factory import Choice
from tlray.search.neighbours.faiss_index import BLOCK_ROWS, FaissIndex
from tlray.search.neighbours.index_kind import kind_made_by
from tlray.search.neighbours.parameters import Parameters, Quality
from tlray.search.neighbours.recall import K, Probe, find_themselves, measure, tune
from tlray.search.rows.copies import NO_NODE
from tlray.search.rows.from_table import read_rows
from tlray.search.rows.row_columns import columns_of
from tlray.search.rows.row_table import RowTable
from tlray.search.versions.card import Card
from tlray.search.versions.changes import VectorChanges
from tlray.search.versions.exact_vectors import IndexVectors, save_vectors
from tlray.search.versions.files import FileKind, IndexFile, put_file
from tlray.search.versions.load import load_index, load_rows
from tlray.search.versions.publish import Contents, publish_changes, publish_whole
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
"""The share that may be lost of the recall of a build that could not reach its target. A rule of thumb: such a recall falls as
rows come, and would after another build as well."""


@dataclass(frozen=True)
class _Update:
    """An index as it is to be.

    Attributes:
        rows: live rows.
        vector_changes: all since the FAISS file was written.
        added: how many of these vectors this update brought.
        removed: nodes that it takes away.
        dead: vectors that no row has any more and that stay inside.
        next_id: over every id of a row that was ever given.
        next_node: over every id of a vector that was ever given.
    """

    rows: RowTable
    vector_changes: VectorChanges
    added: int
    removed: np.ndarray
    dead: int
    next_id: int
    next_node: int


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
        rows, before = load_rows(index_uri, card, scratch)
        changes = row_changes(rows.table, live_parts(table), lambda paths: read_rows(table, paths))
    say(", ".join(f"{count} {name}" for name, count in changes.counts.items()))
    if not len(changes.kept) + len(changes.added):
        raise TableError(f"{table.uri} version {table.version} has no embeddings any more; the index is left as it is")
    reason = _needs_rebuild(card, changes)  # before vectors are read: a table that grew much would not fit in memory
    if reason:
        return None, changes.counts, reason
    with watch.stage("read"):
        after = _after(table, card, rows, before, changes)
    merges = after.vector_changes.size > MERGE_FRACTION * len(after.rows.nodes_U) or config.recall_target != card.recall_target
    with watch.stage("check"):
        measures = merges or is_due(index_uri, card, len(after.rows.nodes_U), before, after.vector_changes, scratch)
    if measures:
        measured = _measured(table, config, index_uri, card, after, watch, scratch)
        reason = _needs_another_build(card, measured.quality, config.recall_target)
        if reason:
            return None, changes.counts, reason
        if merges:
            return _merge(table, config, index_uri, card, after, measured, watch, scratch), changes.counts, ""
        found = {"parameters": measured.parameters, "quality": measured.quality, "measured_version": card.version + 1}
        card = card.model_copy(update=found)
    made = publish_changes(
        table,
        index_uri,
        card,
        after.rows,
        after.vector_changes,
        dead=after.dead,
        next_id=after.next_id,
        next_node=after.next_node,
        watch=watch,
    )
    return made, changes.counts, ""


def _after(table: Table, card: Card, rows_before: RowTable, before: VectorChanges, changes: RowChanges) -> _Update:
    added, features_ND = number_added(table.uri, card, changes)
    next_node = card.next_node + len(features_ND)
    after = pa.concat_tables([changes.kept, added])
    known = None if rows_before.columns is None else (rows_before.table, rows_before.columns)
    rows = RowTable(after, columns_of(table, after, known))
    removed = np.setdiff1d(changes.removed["node"].to_numpy(), [NO_NODE])
    removed = removed[~rows.are_live(removed)]
    return _Update(
        rows=rows,
        vector_changes=before.then(removed, features_ND),
        added=len(features_ND),
        removed=removed,
        dead=_dead(card, next_node, len(rows.nodes_U)),
        next_id=card.next_id + len(added),
        next_node=next_node,
    )


def _dead(card: Card, next_node: int, live: int) -> int:
    """Without removal FAISS numbers all vectors that were ever added."""
    return 0 if kind_made_by(card.factory, card.dimensions, card.metric).removes else next_node - live


def _needs_rebuild(card: Card, changes: RowChanges) -> str:
    rows, live = len(changes.kept) + len(changes.added), len(RowTable(changes.kept).nodes_U)
    dead, most = _dead(card, card.next_node, live), live + len(changes.added)
    if dead > MAX_DEAD_FRACTION * (most + dead):
        return f"{dead} of {most + dead} vectors would be dead, more than {MAX_DEAD_FRACTION:.0%}"
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
        index: the FAISS index.
        exact: the rows' vectors.
        is_stored: whether these are in a file beside the index.
        parameters: of a search.
        quality: as measured.
    """

    index: FaissIndex
    exact: IndexVectors
    is_stored: bool
    parameters: Parameters
    quality: Quality


def _measured(
    table: Table, config: IndexConfig, index_uri: str, card: Card, after: _Update, watch: Stopwatch, scratch: Path
) -> _Measured:
    with watch.stage("load"):
        loaded = load_index(index_uri, card, scratch)
    index, rows = loaded.index, after.rows
    with watch.stage("change"):
        new_ids = np.arange(after.next_node - after.added, after.next_node)
        index.remove(after.removed)
        if after.added:
            index.add(prepared(after.vector_changes.added_ND[-after.added :], card.metric), int(new_ids[0]))
        after.vector_changes.reach(index, rows, card.parameters)
        stored = None if loaded.stored is None else loaded.stored.with_changes(after.rows, after.vector_changes)
    exact = IndexVectors(index, rows, stored, table.uri, card.column)
    with watch.stage("measure"):
        probe = _probe(index, rows, exact)
        parameters = card.parameters
        if config.recall_target != card.recall_target:
            mode = config.rerank if index.kind.is_exact or stored is not None else "never"
            parameters = tune(index, exact, probe, target=config.recall_target, mode=mode)
        new = new_ids[np.linspace(0, after.added - 1, min(CHECKED_NEW_ROWS, after.added)).astype(np.int64)]
        if len(new):
            parameters = find_themselves(index, exact, parameters, new, exact.take(new))
        quality = measure(index, exact, probe, parameters, card.quality.reconstruction_error)
    return _Measured(index, exact, stored is not None, parameters, quality)


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
    index, rows = measured.index, after.rows
    files: dict[FileKind, IndexFile] = {kind: file for kind, file in card.files.items() if kind == "centres"}
    with watch.stage("store"):
        index.save(scratch / "index.faiss")
        files["faiss"] = put_file(index_uri, "faiss", scratch / "index.faiss")
        if measured.is_stored:
            nodes = rows.nodes_U
            starts = range(0, len(nodes), BLOCK_ROWS)
            blocks = (measured.exact.take(nodes[start : start + BLOCK_ROWS]) for start in starts)
            save_vectors(scratch / "vectors.npy", blocks, (len(nodes), card.dimensions))
            files["vectors"] = put_file(index_uri, "vectors", scratch / "vectors.npy")
    contents = Contents(
        index,
        files,
        rows,
        measured.parameters,
        measured.quality,
        next_id=after.next_id,
        next_node=after.next_node,
        built=card.built,
        zeros_are_apart=card.zeros_are_apart,
    )
    return publish_whole(
        table, config, index_uri, card.version + 1, contents, Choice(card.factory, card.reasons, card.ef_construction), watch
    )


def _probe(index: FaissIndex, rows: RowTable, exact: IndexVectors) -> Probe:
    nodes = rows.nodes_U
    ids_B = np.sort(np.random.default_rng(len(nodes)).choice(nodes, min(UPDATE_QUERIES, len(nodes)), replace=False))
    queries_BD = exact.take(ids_B)
    if index.kind.compares_all:
        return Probe.exhaustive(ids_B, queries_BD, len(nodes))
    exact_ids_BK, nearness_BK = exact_neighbours(queries_BD, exact.blocks(), K + 1, index.metric)
    return Probe.of(ids_B, queries_BD, exact_ids_BK, nearness_BK, len(nodes), index.metric)
