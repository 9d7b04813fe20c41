"""The vectors of a build in one process: read from the table into memory, or into a file that stands in for it.

Shape legend: N rows, U nodes, B vectors of a block, D dimensions.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tlray.lake.table.parts import Part
from tlray.lake.table.table import Table
from tlray.search.build.sample import chosen_rows, leaving_out, probe_of
from tlray.search.neighbours.exact import ExactVectors, Metric
from tlray.search.neighbours.faiss_index import BLOCK_ROWS, FaissIndex
from tlray.search.neighbours.recall import Probe
from tlray.search.rows.copies import digests_of, nodes_of
from tlray.search.rows.from_table import read_rows, read_vectors
from tlray.search.rows.row_table import RowTable, with_ids
from tlray.search.versions.exact_vectors import ArrayVectors
from tlray.search.versions.stopwatch import Stopwatch


class VectorsInProcess:
    """The distinct vectors of a table.

    Args:
        table: at the version to show.
        column: the embedding column.
        parts: of the table, in the order of the index's rows.
        dimensions: of a vector.
        metric: what "near" means.
        memory_bytes: what the vectors may take in memory.
        scratch: a folder for temporary files.
        watch: where times are noted.

    Attributes:
        rows: all rows, numbered.
        count: how many distinct vectors they have.
    """

    def __init__(
        self,
        table: Table,
        column: str,
        parts: Sequence[Part],
        dimensions: int,
        metric: Metric,
        memory_bytes: int,
        scratch: Path,
        watch: Stopwatch,
    ) -> None:
        self._metric, self._watch = metric, watch
        with watch.stage("read"):
            placed = read_rows(table, [part.path for part in parts])
            sizes = [(part.path, part.rows) for part in parts]
            read = read_vectors(table.uri, column, sizes, dimensions, metric, scratch, memory_bytes)
        with watch.stage("copies"):
            nodes = nodes_of(read.keys_N, read.is_zero_N, lambda at_M: _digests_at(read.vectors_ND, at_M))
            self._vectors_UD = _moved_up(read.vectors_ND, nodes.first_row_U)
        self.rows = RowTable(with_ids(placed, np.arange(len(placed)), nodes.of_row_N, read.keys_N))
        self.count = len(nodes.first_row_U)

    def fill(self, index: FaissIndex, factory: str) -> ExactVectors:
        """Train an empty index, where it needs that, and add all vectors.

        Args:
            index: empty.
            factory: its factory string.

        Returns:
            The vectors by node.
        """
        vectors_UD = self._vectors_UD
        self._chosen = chosen_rows(factory, len(vectors_UD), index.dimensions)
        with self._watch.stage("train"):
            if not index.is_trained:
                self._train(index)
        with self._watch.stage("add"):
            start = 0
            grows_by_copying = index.kind.is_exact and not index.kind.lists  # all vectors are in one array
            for vectors_BD in [vectors_UD] if grows_by_copying else self.blocks():
                index.add(vectors_BD, start)
                start += len(vectors_BD)
        return ArrayVectors(vectors_UD, self._metric)

    def _train(self, index: FaissIndex) -> None:
        training_ids, probe_ids = self._chosen
        if not len(training_ids):
            index.train(self._vectors_UD)
        elif len(training_ids) + len(probe_ids) < len(self._vectors_UD):
            index.train(self._vectors_UD[training_ids])
        else:
            with leaving_out(self._vectors_UD, probe_ids) as training_BD:
                index.train(training_BD)

    def probe(self, index: FaissIndex) -> Probe:
        """Vectors to measure the filled index with; they were not trained on."""
        with self._watch.stage("exact search"):
            return probe_of(index, self._vectors_UD, self._chosen.probe_ids)

    def blocks(self) -> Iterator[np.ndarray]:
        """All vectors_BD by node, prepared, in slices that bound what is handled at once."""
        for start in range(0, len(self._vectors_UD), BLOCK_ROWS):
            yield self._vectors_UD[start : start + BLOCK_ROWS]


def _digests_at(vectors_ND: np.ndarray, at_M: np.ndarray) -> np.ndarray:
    starts = range(0, len(at_M), BLOCK_ROWS)
    return np.concatenate([digests_of(vectors_ND[at_M[start : start + BLOCK_ROWS]]) for start in starts])


def _moved_up(vectors_ND: np.ndarray, kept_U: np.ndarray) -> np.ndarray:
    """Some rows, ascending, moved to the start of the array: a view of it, and no second one."""
    if len(kept_U) == len(vectors_ND):
        return vectors_ND
    for start in range(0, len(kept_U), BLOCK_ROWS):
        from_B = kept_U[start : start + BLOCK_ROWS]
        vectors_ND[start : start + len(from_B)] = vectors_ND[from_B]
    return vectors_ND[: len(kept_U)]
