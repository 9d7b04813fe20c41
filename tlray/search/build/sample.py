"""Which rows an index is trained on and measured by.

Shape legend: N rows, D dimensions, J candidates.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from tlray.search.neighbours.exact import knn, nearest_of
from tlray.search.neighbours.factory import training_rows
from tlray.search.neighbours.faiss_index import FaissIndex, set_threads, threads
from tlray.search.neighbours.recall import QUERIES, K, Probe

PROBED_ROWS = 16_384
"""Rows that probes are compared with at once: small enough that a core that is busy with writing the index holds up little."""


MOST_WORKERS = 8


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


def probe_of(index: FaissIndex, vectors_ND: np.ndarray, probe_ids: np.ndarray) -> Probe:
    """Rows to measure with, and their exact neighbours, where an index may miss some."""
    queries_BD = vectors_ND[probe_ids]
    if index.kind.compares_all:
        return Probe.exhaustive(probe_ids, queries_BD, len(vectors_ND))

    def nearest(start: int) -> tuple[np.ndarray, np.ndarray]:
        block_ND = vectors_ND[start : start + PROBED_ROWS]
        at_BJ, nearness_BJ = knn(queries_BD, block_ND, min(K + 1, len(block_ND)), index.metric)
        return at_BJ + start, nearness_BJ

    # Small pieces, each on few threads that need not wait for each other: the index is being written on some core.
    workers = min(threads(), MOST_WORKERS)
    with ThreadPoolExecutor(workers, initializer=set_threads, initargs=(threads() // workers,)) as comparing:
        found = list(comparing.map(nearest, range(0, len(vectors_ND), PROBED_ROWS)))
    return Probe.of(probe_ids, queries_BD, *nearest_of(found, K + 1), len(vectors_ND), index.metric)


@contextmanager
def leaving_out(vectors_ND: np.ndarray, ids: np.ndarray) -> Iterator[np.ndarray]:
    """All rows but some, in order and without a copy: the others move up within the array, and back at the end.

    Args:
        vectors_ND: not to be read by anybody else meanwhile.
        ids: of the rows that are left out, in order.
    """
    left_out_BD = vectors_ND[ids]
    pieces = list(enumerate(pairwise([*ids.tolist(), len(vectors_ND)]), 1))
    for by, (before, end) in pieces:
        vectors_ND[before + 1 - by : end - by] = vectors_ND[before + 1 : end]
    try:
        yield vectors_ND[: len(vectors_ND) - len(ids)]
    finally:
        for by, (before, end) in reversed(pieces):
            vectors_ND[before + 1 : end] = vectors_ND[before + 1 - by : end - by]
        vectors_ND[ids] = left_out_BD
