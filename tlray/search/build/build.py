"""Build an index of a table's version: choose, train, add, tune, measure, publish.

Shape legend: B vectors of a block, D dimensions.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from tlray.config import IndexConfig
from tlray.errors import TableError
from tlray.lake.table.parts import Part
from tlray.lake.table.table import Table
from tlray.machine.capacity import memory_budget_bytes
from tlray.progress import say
from tlray.search.build.in_process import VectorsInProcess
from tlray.search.build.remeasure import outlier_nearness
from tlray.search.neighbours.exact import ExactVectors
from tlray.search.neighbours.factory import Choice, choose, fallback
from tlray.search.neighbours.faiss_index import FaissIndex
from tlray.search.neighbours.index_kind import make
from tlray.search.neighbours.parameters import Parameters, Quality
from tlray.search.neighbours.recall import Probe, measure, tune
from tlray.search.rows.row_columns import columns_of
from tlray.search.rows.row_table import RowTable
from tlray.search.versions.card import Built, Card
from tlray.search.versions.exact_vectors import save_vectors
from tlray.search.versions.files import FileKind, IndexFile, put_file
from tlray.search.versions.publish import Contents, publish_whole
from tlray.search.versions.stopwatch import Stopwatch


class _Vectors(Protocol):
    """The distinct vectors that an index is built of, wherever they are."""

    rows: RowTable
    count: int

    def fill(self, index: FaissIndex, factory: str) -> ExactVectors:
        """Train an empty index and add all vectors; gives them by node."""
        ...

    def probe(self, index: FaissIndex) -> Probe:
        """Vectors to measure the filled index with."""
        ...

    def blocks(self) -> Iterator[np.ndarray]:
        """All vectors_BD in the order of their nodes, prepared for the index's metric."""
        ...


@dataclass(frozen=True)
class _Attempt:
    """A filled index of one family, stored, and how good it is."""

    index: FaissIndex
    files: dict[FileKind, IndexFile]
    parameters: Parameters
    quality: Quality
    probe: Probe


def choice_for(config: IndexConfig, count: int, dimensions: int) -> Choice:
    """The factory that the user names, or the chosen one."""
    if config.factory != "auto":
        choice = Choice(config.factory, ("named by the user",))
    else:
        memory_bytes = config.memory_bytes or memory_budget_bytes()
        choice = choose(count, dimensions, memory_bytes, config.recall_target, config.metric)
    return choice._replace(ef_construction=config.ef_construction)


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
    dimensions = math.prod(table.recipe_file.shapes[table.column_of(config.column)])
    parts = table.parts("ok")
    with _vectors(table, config, parts, dimensions, scratch, watch) as vectors:
        _say_what_is_special(table, vectors)
        choice = choice_for(config, vectors.count, dimensions)
        with watch.stage("read"):
            rows = RowTable(vectors.rows.table, columns_of(table, vectors.rows.table))
        say(f"{vectors.count} vectors of {dimensions} dimensions: {choice.factory} ({'; '.join(choice.reasons)})")
        attempt = _attempt(vectors, choice, dimensions, config, index_uri, scratch, watch)
        other = fallback(choice, vectors.count) if config.factory == "auto" else None
        if other is not None and attempt.quality.recall_at_10 < config.recall_target:
            missed = f"{choice.factory} reached a recall at 10 of {attempt.quality.recall_at_10}, under {config.recall_target}"
            say(f"{missed}: {other.factory} instead")
            choice = Choice(other.factory, (*other.reasons, missed))
            del attempt  # before another is in memory
            attempt = _attempt(vectors, choice, dimensions, config, index_uri, scratch, watch)
            choice = choice._replace(ef_construction=config.ef_construction)  # as was asked for, though there is no graph
    built = Built(
        rows=len(vectors.rows),
        recall_at_10=attempt.quality.recall_at_10,
        outlier_nearness=outlier_nearness(attempt.index.centres(), attempt.probe.queries_BD),
    )
    contents = Contents(
        attempt.index,
        attempt.files,
        rows,
        attempt.parameters,
        attempt.quality,
        next_id=len(vectors.rows),
        next_node=vectors.count,
        built=built,
    )
    return publish_whole(table, config, index_uri, version, contents, choice, watch)


@contextmanager
def _vectors(
    table: Table, config: IndexConfig, parts: Sequence[Part], dimensions: int, scratch: Path, watch: Stopwatch
) -> Iterator[_Vectors]:
    count = sum(part.rows for part in parts)
    if not count:
        raise TableError(f"{table.uri} version {table.version} has no rows with an embedding; run `tlray extract` first")
    # Before vectors are read: what does not fit in memory or is not known to FAISS.
    factory = choice_for(config, count, dimensions).factory
    make(factory, dimensions, config.metric, config.ef_construction)
    column, metric = table.column_of(config.column), config.metric
    if config.shards > 1:
        from tlray.search.build.shards_on_ray import vectors_in_shards  # Ray only where work is spread out

        with vectors_in_shards(table, column, parts, dimensions, metric, config.shards, factory, watch) as vectors:
            yield vectors
        return
    memory_bytes = config.memory_bytes or memory_budget_bytes()
    yield VectorsInProcess(table, column, parts, dimensions, metric, memory_bytes, scratch, watch)


def _say_what_is_special(table: Table, vectors: _Vectors) -> None:
    rows = vectors.rows
    zeros = len(rows.zero_positions)
    if zeros == len(rows):
        raise TableError(
            f"all {zeros} embeddings of {table.uri} are zero vectors, which have no direction and so no cosine; look at the "
            "images and the backbone, or give --metric l2"
        )
    if zeros:
        say(f"{zeros} of {len(rows)} rows have an all-zero vector: their cosine to everything is taken to be 0")
    copies = len(rows) - zeros - vectors.count
    if copies:
        say(f"{copies} of {len(rows)} rows have the very vector of another row: it is held once, and answers name all its rows")


def _attempt(
    vectors: _Vectors,
    choice: Choice,
    dimensions: int,
    config: IndexConfig,
    index_uri: str,
    scratch: Path,
    watch: Stopwatch,
) -> _Attempt:
    """Fill an index of one family, store it, and find the parameters of its searches."""
    index = FaissIndex.make(choice.factory, dimensions, config.metric, choice.ef_construction)
    exact = vectors.fill(index, choice.factory)
    # No parameter of a search is in the file: it is written, hashed and stored while they are sought.
    with ThreadPoolExecutor(1) as storing:
        stored = storing.submit(_store, index, index_uri, scratch)
        probe = vectors.probe(index)
        with watch.stage("tune"):
            parameters = tune(index, exact, probe, target=config.recall_target, mode=config.rerank)
        kept = None
        if parameters.rerank > 1 or (config.rerank == "always" and not index.kind.is_exact):
            shape = (vectors.count, index.dimensions)
            kept = storing.submit(_keep, vectors.blocks(), shape, index_uri, scratch / "vectors.npy")
        with watch.stage("store"):
            files = stored.result()
            if kept is not None:
                files["vectors"] = kept.result()
    with watch.stage("measure"):
        quality = measure(index, exact, probe, parameters, index.reconstruction_error(probe.queries_BD, probe.ids_B))
    return _Attempt(index, files, parameters, quality, probe)


def _store(index: FaissIndex, index_uri: str, scratch: Path) -> dict[FileKind, IndexFile]:
    files: dict[FileKind, IndexFile] = {}
    kinds: dict[FileKind, FaissIndex | None] = {"faiss": index, "centres": index.centres()}
    for kind, each in kinds.items():
        if each is not None:
            each.save(scratch / kind)
            files[kind] = put_file(index_uri, kind, scratch / kind)
    return files


def _keep(blocks: Iterable[np.ndarray], shape: tuple[int, int], index_uri: str, path: Path) -> IndexFile:
    save_vectors(path, blocks, shape)
    return put_file(index_uri, "vectors", path)
