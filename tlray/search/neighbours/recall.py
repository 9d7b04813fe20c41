"""How good an index is, measured against exact search; and its parameters, chosen so that it is good enough.

Shape legend: B queries, C candidates, K neighbours, D dimensions.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np

from tlray.search.neighbours.exact import ExactVectors, Metric, nearest_of
from tlray.search.neighbours.faiss_index import MAX_EF_SEARCH, FaissIndex
from tlray.search.neighbours.parameters import Parameters, Quality

Rerank = Literal["auto", "always", "never"]

K = 10
QUERIES = 384
"""Rows that are searched for: at a recall of 0.95 the mean of so many has a standard error of half a point. Comparing them with
all rows is most of what a build does beside FAISS's own work, so there are no more than that needs."""

CONFIDENCE = 2.326
"""Standard errors over the target that a recall must be: chance alone lifts one build in a hundred so far (one-sided, normal
approximation of the mean of many queries)."""

SINGLE_QUERIES = 32
RERANK_FACTORS = (1, 2, 4, 8, 16, 32)
FOUND_THEMSELVES = 0.999
MOST_DOUBLINGS = 5
"""A search 16 times as wide as recall asks for is what finding all rows by themselves may cost."""

TIE = 1e-5
"""The share of a vector's squared length that makes a tie: two distances that differ by less are equal, as float32 sums leave
them."""


@dataclass(frozen=True)
class Probe:
    """Rows that an index is measured with: each is searched for, and must find its exact neighbours beside itself.

    Attributes:
        ids_B: of the rows.
        queries_BD: their vectors, prepared.
        least_B: exact nearness of the last neighbour that is wanted; None where the index compares all, so misses none.
        wanted: neighbours of each: 10, or as many as there are.
    """

    ids_B: np.ndarray
    queries_BD: np.ndarray
    least_B: np.ndarray | None
    wanted: int

    @classmethod
    def of(
        cls,
        ids_B: np.ndarray,
        queries_BD: np.ndarray,
        exact_ids_BK: np.ndarray,
        nearness_BK: np.ndarray,
        count: int,
        metric: Metric,
    ) -> "Probe":
        """From exact neighbours, the vector itself among them.

        Vectors that have ten others as near as float32 can tell are left out where there are others: any of a crowd of
        almost-copies finds its ten, and would hide that the rest does not.

        Args:
            ids_B: of the vectors.
            queries_BD: these vectors.
            exact_ids_BK: K is one more than is wanted, where there are so many vectors.
            nearness_BK: of these.
            count: live vectors of the index.
            metric: what "near" means.
        """
        wanted = min(K, count - 1)
        if not wanted:
            return cls(ids_B, queries_BD, np.empty(0, np.float32), wanted)
        _, nearness_BW = _without_self(exact_ids_BK, nearness_BK, ids_B, wanted)
        least_B = nearness_BW[:, -1]
        if metric != "ip":  # by inner product a row itself need not be its nearest
            is_apart_B = least_B < (1 if metric == "cosine" else 0) - TIE * (queries_BD**2).sum(axis=1)
            if is_apart_B.any():
                return cls(ids_B[is_apart_B], queries_BD[is_apart_B], least_B[is_apart_B], wanted)
        return cls(ids_B, queries_BD, least_B, wanted)

    @classmethod
    def exhaustive(cls, ids_B: np.ndarray, queries_BD: np.ndarray, count: int) -> "Probe":
        """For an index that compares every vector as it is: there is nothing to hold it against but itself."""
        return cls(ids_B, queries_BD, None, min(K, count - 1))

    def recall(self, exact: ExactVectors, found_BK: np.ndarray) -> tuple[float, float]:
        """Mean over the queries of the share of wanted neighbours found, and its standard error; ties count as found."""
        if not self.wanted or self.least_B is None:
            return 1.0, 0.0
        found_BW, _ = _without_self(found_BK, found_BK, self.ids_B, self.wanted)
        exact_BW = exact.nearness(self.queries_BD, found_BW)
        slack_B = TIE * (self.queries_BD**2).sum(axis=1)
        share_B = (exact_BW >= (self.least_B - slack_B)[:, None]).mean(axis=1)
        return float(share_B.mean()), float(share_B.std() / np.sqrt(len(share_B)))


def _without_self(ids_BK: np.ndarray, values_BK: np.ndarray, self_B: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k columns that are not the row itself."""
    order_BK = np.argsort(ids_BK == self_B[:, None], axis=1, kind="stable")[:, :k]
    return np.take_along_axis(ids_BK, order_BK, axis=1), np.take_along_axis(values_BK, order_BK, axis=1)


@dataclass(frozen=True)
class _Trial:
    parameters: Parameters
    recall: float
    error: float
    ids_BK: np.ndarray

    def meets(self, target: float) -> bool:
        """Whether the recall is over the target by more than chance may have added."""
        return self.recall - CONFIDENCE * self.error >= target or self.recall == 1


def tune(index: FaissIndex, exact: ExactVectors, probe: Probe, *, target: float, mode: Rerank) -> Parameters:
    """The cheapest parameters that reach the recall target; where none does, the best there are.

    Re-ranking is decided first, with the search opened wide; then nprobe or efSearch is doubled until the target is met, and
    halved back between the last two.

    Args:
        index: the index.
        exact: the exact vectors.
        probe: what is measured with.
        target: recall at 10.
        mode: `auto` re-ranks only where codes alone miss the target.
    """
    factor = (
        1 if index.kind.is_exact or mode == "never" else _rerank_factor(index, exact, probe, target, always=mode == "always")
    )

    def attempt(value: int) -> _Trial:
        parameters = _parameters(index, value, factor)
        ids_BK, _ = index.search(probe.queries_BD, probe.wanted + 1, parameters, exact)
        return _Trial(parameters, *probe.recall(exact, ids_BK), ids_BK)

    if not index.kind.lists and not index.kind.is_graph:
        return Parameters(rerank=factor)
    first, last = (1, index.kind.lists) if index.kind.lists else (16, MAX_EF_SEARCH)
    best = _least(attempt, first, last, target)
    return find_themselves(index, exact, best.parameters, probe.ids_B, probe.queries_BD, best.ids_BK)


def find_themselves(
    index: FaissIndex,
    exact: ExactVectors,
    parameters: Parameters,
    ids_B: np.ndarray,
    queries_BD: np.ndarray,
    found_BK: np.ndarray | None = None,
) -> Parameters:
    """Search wider, if need be, so that rows are found by their own vectors; a graph that is searched narrowly misses some.

    Args:
        index: the index.
        exact: the exact vectors.
        parameters: to begin with.
        ids_B: of some rows.
        queries_BD: their vectors, prepared.
        found_BK: what was found with the given parameters, where it is known.

    Returns:
        The given parameters where they do, or where a search many times as wide does not either: a row that no link leads to.
    """
    if index.metric == "ip" or not len(ids_B):  # by inner product another row may be nearer than the row itself
        return parameters
    least_B1 = exact.nearness(queries_BD, ids_B[:, None]) - TIE * (queries_BD**2).sum(axis=1, keepdims=True)
    tried = parameters
    for _ in range(MOST_DOUBLINGS):
        if found_BK is None:
            found_BK, _ = index.search(queries_BD, K, tried, exact)
        is_missed_B = ~(exact.nearness(queries_BD, found_BK) >= least_B1).any(axis=1)
        if is_missed_B.sum() <= (1 - FOUND_THEMSELVES) * len(ids_B):
            return tried
        # A wider search finds the others again.
        queries_BD, least_B1, found_BK = queries_BD[is_missed_B], least_B1[is_missed_B], None
        nprobe = None if tried.nprobe is None else min(index.kind.lists, 2 * tried.nprobe)
        ef_search = None if tried.ef_search is None else min(MAX_EF_SEARCH, 2 * tried.ef_search)
        tried = Parameters(nprobe=nprobe, ef_search=ef_search, rerank=tried.rerank)
    return parameters


def reach_all(
    index: FaissIndex, live_ids: np.ndarray, ids_M: np.ndarray, vectors_MD: np.ndarray, parameters: Parameters
) -> None:
    """Have rows that were added to a graph found by their own vectors: what the graph does not lead to is compared beside it.

    By inner product another row may be nearer to it than itself: such a graph is left alone.

    Args:
        index: with the rows in it; one of `links_vectors`.
        live_ids: of all live rows.
        ids_M: of the new ones.
        vectors_MD: theirs, prepared.
        parameters: of a search.
    """
    if index.metric == "ip" or not len(ids_M):
        return
    allowed = np.zeros(index.total, bool)  # else a dead row of the same vector would stand for the live one
    allowed[live_ids] = True
    found_M1, distances_M1 = index.candidates(vectors_MD, 1, parameters, allowed)
    is_lost_M = (found_M1[:, 0] != ids_M) & (distances_M1[:, 0] > TIE * (vectors_MD**2).sum(axis=1))
    index.reach(ids_M[is_lost_M])


def _parameters(index: FaissIndex, value: int, factor: int) -> Parameters:
    if index.kind.lists:
        return Parameters(nprobe=value, rerank=factor)
    return Parameters(ef_search=value, rerank=factor) if index.kind.is_graph else Parameters(rerank=factor)


def _least(attempt: Callable[[int], _Trial], first: int, last: int, target: float) -> _Trial:
    low, high = first, first
    best = attempt(first)
    while not best.meets(target) and high < last:
        low, high = high, min(2 * high, last)
        best = attempt(high)
    while best.meets(target) and high - low > max(1, low // 8):
        middle = (low + high) // 2
        trial = attempt(middle)
        if trial.meets(target):
            best, high = trial, middle
        else:
            low = middle
    return best


def _rerank_factor(index: FaissIndex, exact: ExactVectors, probe: Probe, target: float, *, always: bool) -> int:
    """The least factor whose recall, in a wide search, leaves half of what the target allows to be missed to the search."""
    wide = _parameters(index, max(min(index.kind.lists, 16), index.kind.lists // 8) if index.kind.lists else 512, 1)
    k = probe.wanted + 1
    candidates_BC, _ = index.candidates(probe.queries_BD, min(k * RERANK_FACTORS[-1], index.total), wide)
    factors = RERANK_FACTORS[1:] if always else RERANK_FACTORS
    for factor in factors:
        prefix_BC = candidates_BC[:, : k * factor]
        found_BK = prefix_BC if factor == 1 else nearest_of([(prefix_BC, exact.nearness(probe.queries_BD, prefix_BC))], k)[0]
        recall, error = probe.recall(exact, found_BK)
        if recall - CONFIDENCE * error >= (1 + target) / 2:
            return factor
    return factors[-1]


def measure(
    index: FaissIndex, exact: ExactVectors, probe: Probe, parameters: Parameters, reconstruction_error: float
) -> Quality:
    """Recall and latency of an index as it will be searched."""
    k = probe.wanted + 1
    singles = []
    for at in range(min(SINGLE_QUERIES, len(probe.queries_BD))):  # the first one also pays for what is made once
        began = time.perf_counter()
        index.search(probe.queries_BD[at : at + 1], k, parameters, exact)
        singles.append(time.perf_counter() - began)
    began = time.perf_counter()
    ids_BK, _ = index.search(probe.queries_BD, k, parameters, exact)
    batch_seconds = time.perf_counter() - began
    recall, error = probe.recall(exact, ids_BK)
    return Quality(
        recall_at_10=round(recall, 4),
        standard_error=round(error, 5),
        queries=len(probe.queries_BD),
        milliseconds_single=round(median(singles) * 1000, 4),
        milliseconds_batch=round(batch_seconds * 1000 / len(probe.queries_BD), 4),
        reconstruction_error=float(f"{reconstruction_error:.4g}"),
    )
