"""Index and search on a Ray cluster: shards of an index built in parallel, a table of queries answered by many processes.

Shape legend: N rows, B queries, D dimensions, K neighbours.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import ray

from tlray.errors import ConfigError
from tlray.lake.table.parts import Part
from tlray.ray_cluster.errors import unwrapped
from tlray.ray_cluster.session import joined
from tlray.search.build.sample import chosen_rows
from tlray.search.neighbours.exact import exact_neighbours, nearest_of
from tlray.search.neighbours.faiss_index import FaissIndex
from tlray.search.neighbours.metric import Metric, prepared
from tlray.search.neighbours.recall import K, Probe
from tlray.search.rows.table_vectors import read_part_vectors
from tlray.search.versions.stopwatch import Stopwatch


def fill_in_shards(
    index: FaissIndex, factory: str, table_uri: str, column: str, parts: Sequence[Part], shards: int, watch: Stopwatch
) -> Probe:
    """Train an empty index, have its shards filled by tasks on Ray, and merge them.

    The rows that are trained on and the rows that are probed are those of a build in one process. A shard waits in Ray's
    object store, which writes to disk what does not fit in memory, until it is merged; this process holds the index alone.

    Args:
        index: empty.
        factory: its factory string.
        table_uri: of the table.
        column: the embedding column.
        parts: of the table, in the order of the index's rows.
        shards: how many.
        watch: where times are noted.

    Raises:
        ConfigError: FAISS cannot merge this kind of index, or there is no cluster.
        TlrayError: what a task raised.
    """
    if not index.kind.removes:
        raise ConfigError(
            f"shards are merged for IVF indexes only, not for {factory}; name an IVF --factory, or leave out --shards"
        )
    starts = np.cumsum([0, *(part.rows for part in parts)])
    chosen = chosen_rows(factory, int(starts[-1]), index.dimensions)
    # Neighbouring parts, of about as many rows in each shard.
    edges = np.searchsorted(starts, np.linspace(0, starts[-1], min(shards, len(parts)) + 1))
    pieces = [
        ([part.path for part in parts[first:last]], int(starts[first]))
        for first, last in itertools.pairwise(edges.tolist())
        if last > first
    ]
    with joined(), unwrapped():
        with watch.stage("sample"):
            training_BD = _sample(table_uri, column, pieces, chosen.training_ids, index)
            queries_BD = _sample(table_uri, column, pieces, chosen.probe_ids, index)
        with watch.stage("train"):
            index.train(training_BD)
        del training_BD
        with watch.stage("add"):
            shared = [ray.put(value) for value in (index.to_bytes(), queries_BD)]
            build = _remote(_shard)
            made = [build(*shared, index.metric, table_uri, column, *piece) for piece in pieces]
        found = []
        for reference in made:
            with watch.stage("add"):
                data, ids_BK, nearness_BK = ray.get(reference)
            with watch.stage("merge"):  # while others are still being filled
                index.merge(FaissIndex.from_bytes(data, index.metric))
            found.append((ids_BK, nearness_BK))
    ids_BK, nearness_BK = nearest_of(found, K + 1)
    return Probe.of(chosen.probe_ids, queries_BD, ids_BK, nearness_BK, int(starts[-1]))


def _remote(function: Callable[..., object]) -> Callable[..., Any]:
    remote: Any = ray.remote(function)
    task: Callable[..., Any] = remote.remote
    return task


def _sample(
    table_uri: str, column: str, pieces: Sequence[tuple[list[str], int]], ids: np.ndarray, index: FaissIndex
) -> np.ndarray:
    """Vectors of some rows, prepared; each piece's are picked out on Ray."""
    pick = _remote(_picked)
    return prepared(np.concatenate(ray.get([pick(table_uri, column, *piece, ids) for piece in pieces])), index.metric)


def _blocks(table_uri: str, column: str, paths: Sequence[str], start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for path in paths:
        features_BD = read_part_vectors(table_uri, path, column)
        yield np.arange(start, start + len(features_BD)), features_BD
        start += len(features_BD)


def _picked(table_uri: str, column: str, paths: Sequence[str], start: int, ids: np.ndarray) -> np.ndarray:
    """A task: vectors of those of some rows that are in these parts, in order."""
    picked = []
    for ids_B, features_BD in _blocks(table_uri, column, paths, start):
        wanted = ids[np.searchsorted(ids, ids_B[0]) : np.searchsorted(ids, ids_B[-1] + 1)]
        picked.append(features_BD[wanted - ids_B[0]])
    return np.concatenate(picked)


def _shard(
    trained: bytes, queries_BD: np.ndarray, metric: Metric, table_uri: str, column: str, paths: Sequence[str], start: int
) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A task: the trained index filled with these parts, and their nearest rows to each query."""
    index = FaissIndex.from_bytes(trained, metric)

    def added() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for ids_B, features_BD in _blocks(table_uri, column, paths, start):
            vectors_BD = prepared(features_BD, metric)
            index.add(vectors_BD, int(ids_B[0]))
            yield ids_B, vectors_BD

    ids_BK, nearness_BK = exact_neighbours(queries_BD, added(), K + 1, metric)
    return index.to_bytes(), ids_BK, nearness_BK
