"""Build an index of a table's version: choose, train, add, tune, measure, publish.

Shape legend: N rows, B queries, D dimensions, K neighbours.
"""

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tlray.config import IndexConfig
from tlray.errors import TableError
from tlray.lake.parts import Part
from tlray.lake.table import Table
from tlray.progress import say
from tlray.search.card import Card
from tlray.search.choose import Choice, choose, training_rows
from tlray.search.engine import Engine
from tlray.search.exact import exact_neighbours
from tlray.search.files import put_file
from tlray.search.measure import QUERIES, K, Probe, measure, tune
from tlray.search.publishing import Contents, Stopwatch, column_of, publish_whole
from tlray.search.retrieve import Vectors
from tlray.search.rows import Rows, read_rows, with_ids
from tlray.search.vectors import ArrayVectors, ExactVectors, in_blocks, read_features, read_features_of, save_vectors

_MEMORY_FRACTION = 0.5
"""Of the machine's memory that an index may take unless told otherwise: the rest is for queries, the network and the system."""


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
    engine = Engine.make(choice.factory, dimensions, config.metric)
    with watch.stage("read"):
        rows = Rows(with_ids(read_rows(table, [part.path for part in parts]), np.arange(count)))
    if config.shards > 1:
        from tlray.search.on_ray import fill_in_shards  # Ray only where work is spread out

        probe = fill_in_shards(engine, choice.factory, table.uri, column, parts, config.shards, watch)
        exact: Vectors = ExactVectors(engine, rows, None, table.uri, column)
    else:
        probe, exact = _fill_here(engine, choice.factory, table.uri, column, parts, scratch, memory_for(config), watch)
    with watch.stage("save"):
        engine.save(scratch / "index.faiss")
    # No parameter of a search is in the file: it is hashed and stored while they are sought.
    with ThreadPoolExecutor(1) as beside:
        stored = beside.submit(put_file, index_uri, "faiss", scratch / "index.faiss")
        with watch.stage("tune"):
            parameters = tune(engine, exact, probe, target=config.recall_target, mode=config.rerank)
        with watch.stage("store"):
            file = stored.result()
    with watch.stage("measure"):
        quality = measure(engine, exact, probe, parameters, engine.reconstruction_error(probe.queries_BD, probe.ids_B))
    vectors = None
    if parameters.rerank > 1 or (config.rerank == "always" and not engine.is_exact):
        with watch.stage("keep vectors"):
            vectors = scratch / "vectors.npy"
            blocks = (engine.prepared(read_features_of(table.uri, part.path, column)) for part in parts)
            save_vectors(vectors, blocks, (count, dimensions))
    contents = Contents(engine, file, rows, parameters, quality, vectors, next_id=count, built_rows=count)
    return publish_whole(table, config, index_uri, version, contents, choice, watch)


def _fill_here(
    engine: Engine,
    factory: str,
    table_uri: str,
    column: str,
    parts: list[Part],
    scratch: Path,
    memory_bytes: int,
    watch: Stopwatch,
) -> tuple[Probe, Vectors]:
    with watch.stage("read"):
        sizes = [(part.path, part.rows) for part in parts]
        vectors_ND = read_features(table_uri, column, sizes, engine, scratch, memory_bytes)
    return fill(engine, vectors_ND, factory, watch), ArrayVectors(vectors_ND, engine.metric)


class ChosenRows(NamedTuple):
    """Ids of the rows that an index is trained on, and of those that it is measured with; both in order, none in both."""

    training_ids: np.ndarray
    probe_ids: np.ndarray


def chosen_rows(factory: str, count: int, dimensions: int) -> ChosenRows:
    """Draw rows to train on and rows to measure with.

    Args:
        factory: FAISS's factory string.
        count: rows of the index.
        dimensions: of a vector.
    """
    shuffled = np.random.default_rng(0).permutation(count)
    probes = min(QUERIES, max(1, count // 10))
    # In order, so that a memory-mapped file is read in order; an even stride keeps it a fair sample.
    others = np.sort(shuffled[probes:])
    wanted = min(training_rows(factory, count, dimensions), len(others))
    training = others[np.linspace(0, len(others) - 1, wanted).astype(np.int64)] if wanted else others
    return ChosenRows(training, np.sort(shuffled[:probes]))


def fill(engine: Engine, vectors_ND: np.ndarray, factory: str, watch: Stopwatch) -> Probe:
    """Train an empty index on rows that are not probed, add all, and find the probes' exact neighbours on the way."""
    training_ids, probe_ids = chosen_rows(factory, len(vectors_ND), engine.dimensions)
    with watch.stage("train"):
        if not engine.is_trained:
            engine.train(vectors_ND[training_ids] if len(training_ids) else np.array(vectors_ND))
    queries_BD = np.array(vectors_ND[probe_ids])

    def added() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        start = 0
        for vectors_BD in in_blocks(vectors_ND):
            with watch.stage("add"):
                engine.add(vectors_BD, start)
            yield np.arange(start, start + len(vectors_BD)), vectors_BD
            start += len(vectors_BD)

    if engine.is_exhaustive:
        for _ in added():
            pass
        return Probe.exhaustive(probe_ids, queries_BD, len(vectors_ND))
    with watch.stage("add and exact search"):
        exact_ids_BK, nearness_BK = exact_neighbours(queries_BD, added(), K + 1, engine.metric)
    return Probe.of(probe_ids, queries_BD, exact_ids_BK, nearness_BK, len(vectors_ND))
