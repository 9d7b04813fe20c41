"""Build an index of a table's version: choose, train, add, tune, measure, publish.

Shape legend: N rows, B queries, D dimensions, K neighbours.
"""

import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tlray.config import IndexConfig
from tlray.errors import TableError
from tlray.lake.table import Table
from tlray.progress import say
from tlray.search.card import Card
from tlray.search.choose import Choice, choose, training_rows
from tlray.search.engine import Engine, knn, leave_a_core
from tlray.search.files import IndexFile, put_file
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
    vectors_ND = None
    if config.shards > 1:
        from tlray.search.on_ray import fill_in_shards  # Ray only where work is spread out

        probe = fill_in_shards(engine, choice.factory, table.uri, column, parts, config.shards, watch)
        exact: Vectors = ExactVectors(engine, rows, None, table.uri, column)
    else:
        with watch.stage("read"):
            sizes = [(part.path, part.rows) for part in parts]
            vectors_ND = read_features(table.uri, column, sizes, engine, scratch, memory_for(config))
        chosen = chosen_rows(choice.factory, count, dimensions)
        fill(engine, vectors_ND, chosen, watch)
        exact = ArrayVectors(vectors_ND, engine.metric)
    # No parameter of a search is in the file: one core writes, hashes and stores it while the others seek them.
    with ThreadPoolExecutor(1) as storing, ThreadPoolExecutor(1, initializer=leave_a_core) as seeking:
        stored = storing.submit(_store, engine, index_uri, scratch / "index.faiss")
        if vectors_ND is not None:
            with watch.stage("exact search"):
                probe = seeking.submit(probe_of, engine, vectors_ND, chosen.probe_ids).result()
        with watch.stage("tune"):
            sought = seeking.submit(tune, engine, exact, probe, target=config.recall_target, mode=config.rerank)
            parameters = sought.result()
        kept = None
        if parameters.rerank > 1 or (config.rerank == "always" and not engine.is_exact):
            if vectors_ND is not None:
                blocks = in_blocks(vectors_ND)
            else:
                blocks = (engine.prepared(read_features_of(table.uri, part.path, column)) for part in parts)
            kept = storing.submit(_keep, blocks, (count, dimensions), index_uri, scratch / "vectors.npy")
        with watch.stage("store"):
            file, vectors = stored.result(), kept.result() if kept else None
    with watch.stage("measure"):
        quality = measure(engine, exact, probe, parameters, engine.reconstruction_error(probe.queries_BD, probe.ids_B))
    contents = Contents(engine, file, rows, parameters, quality, vectors, next_id=count, built_rows=count)
    return publish_whole(table, config, index_uri, version, contents, choice, watch)


def _store(engine: Engine, index_uri: str, path: Path) -> IndexFile:
    engine.save(path)
    return put_file(index_uri, "faiss", path)


def _keep(blocks: Iterable[np.ndarray], shape: tuple[int, int], index_uri: str, path: Path) -> IndexFile:
    save_vectors(path, blocks, shape)
    return put_file(index_uri, "vectors", path)


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


def fill(engine: Engine, vectors_ND: np.ndarray, chosen: ChosenRows, watch: Stopwatch) -> None:
    """Train an empty index on the rows that are chosen for it, and add all."""
    with watch.stage("train"):
        if not engine.is_trained:
            engine.train(vectors_ND[chosen.training_ids] if len(chosen.training_ids) else np.array(vectors_ND))
    with watch.stage("add"):
        start = 0
        for vectors_BD in in_blocks(vectors_ND):
            engine.add(vectors_BD, start)
            start += len(vectors_BD)


def probe_of(engine: Engine, vectors_ND: np.ndarray, probe_ids: np.ndarray) -> Probe:
    """Rows to measure with, and their exact neighbours, where an index may miss some."""
    queries_BD = vectors_ND[probe_ids]
    if engine.is_exhaustive:
        return Probe.exhaustive(probe_ids, queries_BD, len(vectors_ND))
    exact_ids_BK, nearness_BK = knn(queries_BD, vectors_ND, min(K + 1, len(vectors_ND)), engine.metric)
    return Probe.of(probe_ids, queries_BD, exact_ids_BK, nearness_BK, len(vectors_ND))
