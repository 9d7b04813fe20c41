"""Put a version of an index where it is to be: its files first, then its card, which makes it visible.

Shape legend: N vectors, D dimensions.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from tlray.config import IndexConfig
from tlray.lake.table.table import Table
from tlray.search.neighbours.factory import Choice
from tlray.search.neighbours.faiss_index import LIBRARY_VERSION, FaissIndex
from tlray.search.neighbours.parameters import Parameters, Quality
from tlray.search.rows.row_columns import RowColumns
from tlray.search.rows.row_table import RowTable
from tlray.search.versions.card import Built, Card, publish
from tlray.search.versions.changes import VectorChanges
from tlray.search.versions.files import FileKind, IndexFile, put_bytes
from tlray.search.versions.stopwatch import Stopwatch
from tlray.version import __version__


@dataclass(frozen=True)
class Contents:
    """What a version is made of, before it is published.

    Attributes:
        index: the FAISS index.
        files: where it is stored, its vectors and centres too, where they are kept.
        rows: its live rows.
        parameters: of a search.
        quality: what was measured.
        next_id: over every id of a row that was ever given.
        next_node: over every id of a vector that was ever given.
        built: what it was when it was built as a whole.
        zeros_are_apart: see `Card`.
    """

    index: FaissIndex
    files: dict[FileKind, IndexFile]
    rows: RowTable
    parameters: Parameters
    quality: Quality
    next_id: int
    next_node: int
    built: Built
    zeros_are_apart: bool = True


def publish_whole(
    table: Table,
    config: IndexConfig,
    index_uri: str,
    version: int,
    contents: Contents,
    choice: Choice,
    watch: Stopwatch,
) -> Card:
    """Store all files of a version, then its card.

    Args:
        table: at the version that the index shows.
        config: of the command.
        index_uri: of the index.
        version: its number.
        contents: what it is made of.
        choice: the factory and why.
        watch: times so far.

    Raises:
        ConcurrentWriteError: somebody else published a version of that number.
    """
    index = contents.index
    with watch.stage("write"):
        small: dict[FileKind, IndexFile] = {
            "rows": put_bytes(index_uri, "rows", contents.rows.to_bytes()),
            "recipe": put_bytes(index_uri, "recipe", table.recipe_file.to_json()),
        }
        if contents.rows.columns is not None:
            small["columns"] = put_bytes(index_uri, "columns", contents.rows.columns.to_bytes())
    card = Card(
        version=version,
        created=_now(),
        table=table.uri,
        table_id=table.id,
        table_version=table.version,
        recipe_id=table.recipe_file.recipe_id,
        column=table.column_of(config.column),
        dimensions=index.dimensions,
        metric=index.metric,
        factory=choice.factory,
        reasons=choice.reasons,
        ef_construction=choice.ef_construction,
        rows=len(contents.rows),
        nodes=len(contents.rows.nodes_U),
        zero_rows=len(contents.rows.zero_positions),
        dead=index.total - len(contents.rows.nodes_U),
        next_id=contents.next_id,
        next_node=contents.next_node,
        base_next_node=contents.next_node,
        zeros_are_apart=contents.zeros_are_apart,
        built=contents.built,
        recall_target=config.recall_target,
        parameters=contents.parameters,
        quality=contents.quality,
        unreached=tuple(index.unreached[contents.rows.are_live(index.unreached)].tolist()),
        measured_version=version,
        seconds=watch.seconds,
        files=contents.files | small,
        made_with=_made_with(),
    )
    publish(index_uri, card)
    return card


def publish_changes(
    table: Table,
    index_uri: str,
    before: Card,
    rows: RowTable,
    changes: VectorChanges,
    *,
    dead: int,
    next_id: int,
    next_node: int,
    watch: Stopwatch,
) -> Card:
    """Store what changed since the FAISS file was written, then the card of a version that is that file and this change.

    Args:
        table: at the version that the index shows.
        index_uri: of the index.
        before: the version before.
        rows: live rows.
        changes: all since the FAISS file was written.
        dead: vectors that no row has any more and that stay inside.
        next_id: over every id of a row that was ever given.
        next_node: over every id of a vector that was ever given.
        watch: times so far.

    Raises:
        ConcurrentWriteError: somebody else published a version of that number.
    """
    contents: dict[FileKind, RowTable | VectorChanges | RowColumns] = {"rows": rows}
    if changes.size:
        contents["delta"] = changes
    if rows.columns is not None:
        contents["columns"] = rows.columns
    with watch.stage("write"), ThreadPoolExecutor(len(contents)) as storing:
        stored = storing.map(lambda kind: put_bytes(index_uri, kind, contents[kind].to_bytes()), contents)
        changed = dict(zip(contents, stored, strict=True))
    card = before.model_copy(
        update={
            "version": before.version + 1,
            "created": _now(),
            "table": table.uri,
            "table_id": table.id,
            "table_version": table.version,
            "rows": len(rows),
            "nodes": len(rows.nodes_U),
            "zero_rows": len(rows.zero_positions),
            "dead": dead,
            "next_id": next_id,
            "next_node": next_node,
            "seconds": watch.seconds,
            "files": before.files | changed,
            "made_with": _made_with(),
        }
    )
    publish(index_uri, card)
    return card


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _made_with() -> dict[str, str]:
    return {"tlray": __version__, "faiss": LIBRARY_VERSION, "numpy": np.__version__}
