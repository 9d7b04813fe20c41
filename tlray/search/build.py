"""Build an index of a table's version: choose, train, add, tune, measure, publish.

Shape legend: N rows, B queries, D dimensions, K neighbours.
"""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from tlray import __version__
from tlray.config import IndexConfig
from tlray.errors import ConfigError, TableError
from tlray.lake.table import Table
from tlray.progress import say
from tlray.search.card import Card, FileKind, IndexFile, Parameters, Quality, publish, put_bytes, put_file
from tlray.search.choose import Choice, choose, training_rows
from tlray.search.engine import Engine, exact_neighbours, library_version
from tlray.search.measure import QUERIES, K, Probe, measure, tune
from tlray.search.rows import Rows, read_rows, with_ids
from tlray.search.vectors import in_blocks, read_features, save_vectors, take_from

_MEMORY_FRACTION = 0.5
"""Of the machine's memory that an index may take unless told otherwise: the rest is for queries, the network and the system."""


@dataclass
class Stopwatch:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a block."""
        began = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - began, 3)


@dataclass(frozen=True)
class Contents:
    """What a version is made of, before it is published.

    Attributes:
        engine: the FAISS index.
        rows: its live rows.
        parameters: of a search.
        quality: what was measured.
        vectors: a local file with the exact vectors, where they are kept.
        next_id: over every id that was ever given.
        built_rows: live rows when it was built as a whole.
    """

    engine: Engine
    rows: Rows
    parameters: Parameters
    quality: Quality
    vectors: Path | None
    next_id: int
    built_rows: int


def column_of(table: Table, name: str | None) -> str:
    """The embedding column that is meant.

    Raises:
        ConfigError: there is none of that name, or there are several and none was named.
    """
    if name is None and len(table.columns) == 1:
        return table.columns[0]
    if name not in table.columns:
        raise ConfigError(f"column is {name}; expected one of the table's: {', '.join(table.columns)}")
    return str(name)


def choice_for(config: IndexConfig, rows: int, dimensions: int) -> Choice:
    """The factory that the user names, or the chosen one."""
    if config.factory != "auto":
        return Choice(config.factory, ("named by the user",))
    return choose(rows, dimensions, memory_for(config), config.recall_target, config.metric)


def memory_for(config: IndexConfig) -> int:
    """What the index may take, in bytes."""
    physical_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return config.memory_bytes or int(_MEMORY_FRACTION * physical_bytes)


def build(table: Table, config: IndexConfig, index_uri: str, version: int, scratch: Path) -> Card:
    """Build an index as a whole and publish it.

    Args:
        table: at the version to show.
        config: of the command.
        index_uri: where.
        version: number of the new version.
        scratch: a folder for temporary files.

    Raises:
        TableError: there is nothing to index.
        ConfigError: a factory or a metric that does not fit.
    """
    watch = Stopwatch()
    column = column_of(table, config.column)
    dimensions = math.prod(table.recipe_file.shapes[column])
    parts = [part for part in table.parts() if part.status == "ok"]
    count = sum(part.rows for part in parts)
    if not count:
        raise TableError(f"{table.uri} version {table.version} has no rows with an embedding; run `tlray extract` first")
    choice = choice_for(config, count, dimensions)
    say(f"{count} rows of {dimensions} dimensions: {choice.factory} ({'; '.join(choice.reasons)})")
    with watch.stage("read"):
        rows = Rows(with_ids(read_rows(table, [part.path for part in parts]), np.arange(count)))
        sizes = [(part.path, part.rows) for part in parts]
        features_ND = read_features(table.uri, column, sizes, dimensions, scratch, memory_for(config))
    engine = Engine.make(choice.factory, dimensions, config.metric)
    shuffled = np.random.default_rng(0).permutation(count)
    probe_ids = np.sort(shuffled[: min(QUERIES, max(1, count // 10))])
    probe = fill(engine, features_ND, probe_ids, np.sort(shuffled[len(probe_ids) :]), choice.factory, watch)
    take = take_from(engine, features_ND)
    with watch.stage("tune"):
        parameters = tune(engine, take, probe, target=config.recall_target, mode=config.rerank)
        quality = measure(engine, take, probe, parameters, engine.reconstruction_error(probe.queries_BD, probe.ids_B))
    vectors = None
    if parameters.rerank > 1 or (config.rerank == "always" and not engine.is_exact):
        vectors = scratch / "vectors.npy"
        save_vectors(vectors, lambda: in_blocks(features_ND), features_ND.shape)
    contents = Contents(engine, rows, parameters, quality, vectors, next_id=count, built_rows=count)
    return publish_version(table, config, index_uri, version, contents, choice, watch, scratch)


def fill(
    engine: Engine, features_ND: np.ndarray, probe_ids: np.ndarray, others: np.ndarray, factory: str, watch: Stopwatch
) -> Probe:
    """Train an empty index on rows that are not probed, add all, and find the probes' exact neighbours on the way."""
    with watch.stage("train"):
        wanted = training_rows(factory, len(features_ND), features_ND.shape[1])
        if wanted:
            # `others` is sorted so that a memory-mapped file is read in order; an even stride keeps it a fair sample.
            sample = (
                others[np.linspace(0, len(others) - 1, min(wanted, len(others))).astype(np.int64)] if len(others) else probe_ids
            )
            engine.train(engine.prepared(features_ND[sample]))
    queries_BD = engine.prepared(features_ND[probe_ids])

    def added() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        start = 0
        for block_BD in in_blocks(features_ND):
            vectors_BD = engine.prepared(block_BD)
            with watch.stage("add"):
                engine.add(vectors_BD, start)
            yield np.arange(start, start + len(block_BD)), vectors_BD
            start += len(block_BD)

    with watch.stage("add and exact search"):
        exact_ids_BK, nearness_BK = exact_neighbours(queries_BD, added(), K + 1, engine.metric)
    return Probe.of(probe_ids, queries_BD, exact_ids_BK, nearness_BK, len(features_ND))


def publish_version(
    table: Table,
    config: IndexConfig,
    index_uri: str,
    version: int,
    contents: Contents,
    choice: Choice,
    watch: Stopwatch,
    scratch: Path,
) -> Card:
    """Store the files of a version, then its card."""
    engine = contents.engine
    with watch.stage("write"):
        engine.save(scratch / "index.faiss")
        files: dict[FileKind, IndexFile] = {
            "faiss": put_file(index_uri, "faiss", scratch / "index.faiss"),
            "rows": put_bytes(index_uri, "rows", contents.rows.to_bytes()),
            "recipe": put_bytes(index_uri, "recipe", table.recipe_file.to_json()),
        }
        if contents.vectors is not None:
            files["vectors"] = put_file(index_uri, "vectors", contents.vectors)
    column = column_of(table, config.column)
    card = Card(
        version=version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        table=table.uri,
        table_version=table.version,
        recipe_id=table.recipe_file.recipe_id,
        column=column,
        dimensions=engine.index.d,
        metric=engine.metric,
        factory=choice.factory,
        reasons=choice.reasons,
        rows=len(contents.rows),
        dead=engine.total - len(contents.rows),
        next_id=contents.next_id,
        built_rows=contents.built_rows,
        recall_target=config.recall_target,
        parameters=contents.parameters,
        quality=contents.quality,
        seconds=watch.seconds,
        files=files,
        made_with={"tlray": __version__, "faiss": library_version(), "numpy": np.__version__},
    )
    publish(index_uri, card)
    return card
