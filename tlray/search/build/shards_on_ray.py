"""The vectors of a build that is spread out on Ray: shards of an index filled in parallel, and merged.

Shape legend: N rows, U nodes, B vectors of a part, M asked for, Q queries, D dimensions, K neighbours.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import ray

from tlray.errors import ConfigError
from tlray.lake.table.parts import Part
from tlray.lake.table.table import Table
from tlray.ray_cluster.errors import unwrapped
from tlray.ray_cluster.session import joined
from tlray.ray_cluster.waiting import said_while_waiting
from tlray.search.build.sample import chosen_rows
from tlray.search.neighbours.exact import ExactVectors, Metric, exact_neighbours, nearest_of, prepared
from tlray.search.neighbours.faiss_index import FaissIndex
from tlray.search.neighbours.index_kind import kind_made_by
from tlray.search.neighbours.recall import K, Probe
from tlray.search.rows.copies import digests_of, nodes_of
from tlray.search.rows.from_table import keyed, read_part_vectors, read_rows
from tlray.search.rows.row_table import RowTable, with_ids
from tlray.search.versions.exact_vectors import IndexVectors
from tlray.search.versions.stopwatch import Stopwatch


class _Source(NamedTuple):
    """A column of a table, and what its vectors are prepared for."""

    table_uri: str
    column: str
    metric: Metric


class _Piece(NamedTuple):
    """Neighbouring parts of a table, and the position of their first row among all."""

    paths: tuple[str, ...]
    start: int


class VectorsInShards:
    """The distinct vectors of a table, read by tasks on Ray; this process holds the merged index alone.

    The rows that are trained on and those that are probed are the ones of a build in one process. A shard waits in Ray's object
    store, which writes to disk what does not fit in memory, until it is merged.

    Args:
        table: at the version to show.
        column: the embedding column.
        parts: of the table, in the order of the index's rows.
        dimensions: of a vector.
        metric: what "near" means.
        shards: how many pieces.
        factory: of the index, as it would be without copies.
        watch: where times are noted.

    Attributes:
        rows: all rows, numbered.
        count: how many distinct vectors they have.

    Raises:
        ConfigError: FAISS cannot merge this kind of index.
        TlrayError: what a task raised.
    """

    def __init__(
        self,
        table: Table,
        column: str,
        parts: Sequence[Part],
        dimensions: int,
        metric: Metric,
        shards: int,
        factory: str,
        watch: Stopwatch,
    ) -> None:
        if not kind_made_by(factory, dimensions, metric).removes:
            raise ConfigError(
                f"shards are merged for IVF indexes only, not for {factory}; name an IVF --factory, or leave out --shards"
            )
        self._source, self._watch = _Source(table.uri, column, metric), watch
        starts = np.cumsum([0, *(part.rows for part in parts)])
        # Neighbouring parts, of about as many rows in each shard.
        edges = np.searchsorted(starts, np.linspace(0, starts[-1], min(shards, len(parts)) + 1))
        self._pieces = [
            _Piece(tuple(part.path for part in parts[first:last]), int(starts[first]))
            for first, last in itertools.pairwise(edges.tolist())
            if last > first
        ]
        with watch.stage("read"):
            placed = read_rows(table, [part.path for part in parts])
        with watch.stage("sample"):
            chosen = chosen_rows(factory, len(placed), dimensions)
            surveys = self._in_pieces(_surveyed, np.sort(np.concatenate(chosen)))
            keys_N, is_zero_N, chosen_MD = (np.concatenate(each) for each in zip(*surveys, strict=True))
            nodes = nodes_of(keys_N, is_zero_N, lambda at_M: np.concatenate(self._in_pieces(_digested, at_M)))
        self._first_row_U = nodes.first_row_U
        self._sample = (factory, chosen, chosen_MD)
        self.rows = RowTable(with_ids(placed, np.arange(len(placed)), nodes.of_row_N, keys_N))
        self.count = len(nodes.first_row_U)

    def _in_pieces(self, task: Callable[..., Any], at_M: np.ndarray) -> list[Any]:
        """What a task says of some rows, ascending, piece by piece."""
        shared = ray.put(at_M)
        asked = [_remote(task)(self._source, piece, shared) for piece in self._pieces]
        return list(said_while_waiting(map(ray.get, asked)))

    def fill(self, index: FaissIndex, factory: str) -> ExactVectors:
        """Train an empty index and have all vectors added to it.

        Args:
            index: empty.
            factory: its factory string.

        Returns:
            The vectors by node.
        """
        with self._watch.stage("sample"):
            known, chosen, chosen_MD = self._sample
            if known != factory or self.count < len(self.rows):  # copies are left out, so other rows are chosen
                chosen = chosen_rows(factory, self.count, index.dimensions)
                at_M = self._first_row_U[np.sort(np.concatenate(chosen))]
                chosen_MD = np.concatenate(self._in_pieces(_picked, at_M))
            is_probe_M = np.isin(np.sort(np.concatenate(chosen)), chosen.probe_ids)
            self._probe_ids, self._queries_QD = chosen.probe_ids, chosen_MD[is_probe_M]
        with self._watch.stage("train"):
            index.train(chosen_MD[~is_probe_M])
        self._sample = ("", chosen, chosen_MD[:0])
        self._fill(index)
        return IndexVectors(index, self.rows, None, self._source.table_uri, self._source.column)

    def _fill(self, index: FaissIndex) -> None:
        with self._watch.stage("add"):
            shared = [ray.put(value) for value in (index.to_bytes(), self._queries_QD, self._first_row_U)]
            made = [_remote(_shard)(self._source, piece, *shared) for piece in self._pieces]
        self._found = []
        filled = said_while_waiting(map(ray.get, made))
        for _ in made:
            with self._watch.stage("add"):
                data, ids_QK, nearness_QK = next(filled)
            with self._watch.stage("merge"):  # while others are still being filled
                index.merge(FaissIndex.from_bytes(data, index.metric))
            self._found.append((ids_QK, nearness_QK))

    def probe(self, index: FaissIndex) -> Probe:
        """Vectors to measure the filled index with; they were not trained on."""
        ids_QK, nearness_QK = nearest_of(self._found, K + 1)
        return Probe.of(self._probe_ids, self._queries_QD, ids_QK, nearness_QK, self.count, index.metric)

    def blocks(self) -> Iterator[np.ndarray]:
        """All vectors_BD by node, prepared, a part at a time."""
        for piece in self._pieces:
            for _, vectors_BD in _vectors_at(self._source, piece, self._first_row_U):
                yield vectors_BD


@contextmanager
def vectors_in_shards(*arguments: Any) -> Iterator[VectorsInShards]:
    """`VectorsInShards`, for as long as the cluster is joined; Ray's errors are ours.

    Raises:
        ConfigError: there is no cluster.
    """
    with joined(), unwrapped():
        yield VectorsInShards(*arguments)


def _remote(function: Callable[..., object]) -> Callable[..., Any]:
    remote: Any = ray.remote(function)
    task: Callable[..., Any] = remote.remote
    return task


def _vectors_at(source: _Source, piece: _Piece, at_M: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The vectors of some rows, ascending, part by part: the place of the first in `at_M`, and their prepared vectors_BD."""
    start = piece.start
    for path in piece.paths:
        features_BD = read_part_vectors(source.table_uri, path, source.column)
        first, last = np.searchsorted(at_M, [start, start + len(features_BD)])
        yield int(first), prepared(features_BD[at_M[first:last] - start], source.metric)
        start += len(features_BD)


def _surveyed(source: _Source, piece: _Piece, at_M: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A task: keys of all rows of a piece, which ones have no direction, and the vectors of some."""
    keys, is_zero, vectors, start = [], [], [], piece.start
    for path in piece.paths:
        read = keyed(read_part_vectors(source.table_uri, path, source.column), source.metric)
        first, last = np.searchsorted(at_M, [start, start + len(read.keys_N)])
        keys.append(read.keys_N)
        is_zero.append(read.is_zero_N)
        vectors.append(read.vectors_ND[at_M[first:last] - start])
        start += len(read.keys_N)
    return np.concatenate(keys), np.concatenate(is_zero), np.concatenate(vectors)


def _picked(source: _Source, piece: _Piece, at_M: np.ndarray) -> np.ndarray:
    """A task: the vectors of those of some rows that are in a piece."""
    return np.concatenate([vectors_BD for _, vectors_BD in _vectors_at(source, piece, at_M)])


def _digested(source: _Source, piece: _Piece, at_M: np.ndarray) -> np.ndarray:
    """A task: the digests of those of some rows that are in a piece."""
    return np.concatenate([digests_of(vectors_BD) for _, vectors_BD in _vectors_at(source, piece, at_M)])


def _shard(
    source: _Source, piece: _Piece, trained: bytes, queries_QD: np.ndarray, first_row_U: np.ndarray
) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A task: the trained index filled with a piece's nodes, and the nearest of them to each query."""
    index = FaissIndex.from_bytes(trained, source.metric)

    def added() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for node, vectors_BD in _vectors_at(source, piece, first_row_U):
            index.add(vectors_BD, node)
            yield np.arange(node, node + len(vectors_BD)), vectors_BD

    ids_QK, nearness_QK = exact_neighbours(queries_QD, added(), K + 1, source.metric)
    return index.to_bytes(), ids_QK, nearness_QK
