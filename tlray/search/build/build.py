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
from tlray.lake.table.table import Table
from tlray.progress import say
from tlray.search.neighbours.brute import knn, set_threads, threads
from tlray.search.versions.card import Built, Card
from tlray.search.neighbours.factory import Choice, choose, training_rows
from tlray.search.build.remeasure import outlier_nearness
from tlray.search.neighbours.faiss_index import Engine
from tlray.search.neighbours.exact import nearest_of
from tlray.search.versions.files import FileKind, IndexFile, put_file
from tlray.search.neighbours.recall import QUERIES, K, Probe, measure, tune
from tlray.search.versions.publish import Contents, Stopwatch, column_of, publish_whole
from tlray.search.neighbours.rerank import Vectors
from tlray.search.neighbours.row_table import Rows, read_rows, with_ids
from tlray.search.versions.exact_vectors import (
    ArrayVectors,
    ExactVectors,
    in_blocks,
    leaving_out,
    read_features,
    read_features_of,
    save_vectors,
)

_MEMORY_FRACTION = 0.5
"""Of the machine's memory that an index may take unless told otherwise: the rest is for queries, the network and the system."""


PROBED_ROWS = 16_384
"""Rows that probes are compared with at once. For 100,000 rows of 512, on two cores while another thread writes the index:
0.33 s in eighths, 0.37 s in quarters; all at once on one core 0.46 s."""

MOST_WORKERS = 8


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
    parts = table.parts("ok")
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
        from tlray.search.build.shards_on_ray import fill_in_shards  # Ray only where work is spread out

        probe = fill_in_shards(engine, choice.factory, table.uri, column, parts, config.shards, watch)
        exact: Vectors = ExactVectors(engine, rows, None, table.uri, column)
    else:
        with watch.stage("read"):
            sizes = [(part.path, part.rows) for part in parts]
            vectors_ND = read_features(table.uri, column, sizes, engine, scratch, memory_for(config))
        chosen = chosen_rows(choice.factory, count, dimensions)
        fill(engine, vectors_ND, chosen, watch)
        exact = ArrayVectors(vectors_ND, engine.metric)
    # No parameter of a search is in the file: it is written, hashed and stored while they are sought.
    with ThreadPoolExecutor(1) as storing:
        stored = storing.submit(_store, engine, index_uri, scratch)
        if vectors_ND is not None:
            with watch.stage("exact search"):
                probe = probe_of(engine, vectors_ND, chosen.probe_ids)
        with watch.stage("tune"):
            parameters = tune(engine, exact, probe, target=config.recall_target, mode=config.rerank)
        kept = None
        if parameters.rerank > 1 or (config.rerank == "always" and not engine.is_exact):
            if vectors_ND is not None:
                blocks = in_blocks(vectors_ND)
            else:
                blocks = (engine.prepared(read_features_of(table.uri, part.path, column)) for part in parts)
            kept = storing.submit(_keep, blocks, (count, dimensions), index_uri, scratch / "vectors.npy")
        with watch.stage("store"):
            files = stored.result()
            if kept is not None:
                files["vectors"] = kept.result()
    with watch.stage("measure"):
        quality = measure(engine, exact, probe, parameters, engine.reconstruction_error(probe.queries_BD, probe.ids_B))
    built = Built(
        rows=count,
        recall_at_10=quality.recall_at_10,
        outlier_nearness=outlier_nearness(engine.centres(), probe.queries_BD),
    )
    contents = Contents(engine, files, rows, parameters, quality, next_id=count, built=built)
    return publish_whole(table, config, index_uri, version, contents, choice, watch)


def _store(engine: Engine, index_uri: str, scratch: Path) -> dict[FileKind, IndexFile]:
    files: dict[FileKind, IndexFile] = {}
    kinds: dict[FileKind, Engine | None] = {"faiss": engine, "centres": engine.centres()}
    for kind, each in kinds.items():
        if each is not None:
            each.save(scratch / kind)
            files[kind] = put_file(index_uri, kind, scratch / kind)
    return files


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
            _train(engine, vectors_ND, chosen)
    with watch.stage("add"):
        start = 0
        grows_by_copying = engine.is_exact and not engine.lists  # all vectors are in one array
        for vectors_BD in [vectors_ND] if grows_by_copying else in_blocks(vectors_ND):
            engine.add(vectors_BD, start)
            start += len(vectors_BD)


def _train(engine: Engine, vectors_ND: np.ndarray, chosen: ChosenRows) -> None:
    if not len(chosen.training_ids):
        engine.train(vectors_ND)
    elif len(chosen.training_ids) + len(chosen.probe_ids) < len(vectors_ND):
        engine.train(vectors_ND[chosen.training_ids])
    else:
        with leaving_out(vectors_ND, chosen.probe_ids) as training_BD:
            engine.train(training_BD)


def probe_of(engine: Engine, vectors_ND: np.ndarray, probe_ids: np.ndarray) -> Probe:
    """Rows to measure with, and their exact neighbours, where an index may miss some."""
    queries_BD = vectors_ND[probe_ids]
    if engine.is_exhaustive:
        return Probe.exhaustive(probe_ids, queries_BD, len(vectors_ND))

    def nearest(start: int) -> tuple[np.ndarray, np.ndarray]:
        block_ND = vectors_ND[start : start + PROBED_ROWS]
        at_BJ, nearness_BJ = knn(queries_BD, block_ND, min(K + 1, len(block_ND)), engine.metric)
        return at_BJ + start, nearness_BJ

    # Small pieces, each on few threads that need not wait for each other: the index is being written on some core.
    workers = min(threads(), MOST_WORKERS)
    with ThreadPoolExecutor(workers, initializer=set_threads, initargs=(threads() // workers,)) as comparing:
        found = list(comparing.map(nearest, range(0, len(vectors_ND), PROBED_ROWS)))
    return Probe.of(probe_ids, queries_BD, *nearest_of(found, K + 1), len(vectors_ND))
