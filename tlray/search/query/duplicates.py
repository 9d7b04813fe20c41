"""`tlray duplicates`: groups of rows that are nearly the same, and those that cross splits or labels.

Rows are joined where their cosine is at least the given one, directly or through others (connected components). Rows of the
very same vector are known to the index; other neighbours come from its searches, so a pair may be missed as often as its recall
says. Cosines are exact. An all-zero vector has no direction, so it is like no other.

Shape legend: B vectors, K neighbours, E pairs, N rows, U distinct vectors (nodes).
"""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tlray.config import DuplicatesConfig
from tlray.errors import ConfigError
from tlray.lake.storage.uri import to_uri
from tlray.progress import say
from tlray.scoring import connected_components
from tlray.search.neighbours.exact import nearest_of
from tlray.search.query.answer_file import check_place, write_answers
from tlray.search.query.searcher import Searcher
from tlray.search.rows.copies import NO_NODE

FIRST_K = 16
MAX_K = 1024
"""Neighbours asked for: few at first, four times as many for vectors all of whose neighbours are near enough. Beyond the last
number a group still holds together through its other members."""

ROWS_SHOWN = 10
_QUERIES_AT_ONCE = 4096


class NearPairs(NamedTuple):
    """Pairs of distinct vectors, each once, whose cosine is at least the given one.

    Attributes:
        first_E: of each pair the vector that comes first, as its place among the index's live nodes.
        second_E: the other one.
        cut_off: how many vectors have more than MAX_K near ones, so that some of their pairs are not listed.
    """

    first_E: np.ndarray
    second_E: np.ndarray
    cut_off: int


def duplicates(config: DuplicatesConfig) -> dict[str, Any]:
    """Report the near-duplicates among the rows of an index.

    Args:
        config: of the command.

    Returns:
        The command's JSON object: counts, and the groups that matter most.

    Raises:
        ConfigError: an index that is not by cosine, or a place where no file can be written.
    """
    began = time.monotonic()
    if config.out:
        check_place(config.out)
    searcher = Searcher.open(config.index)
    if searcher.card.metric != "cosine":
        raise ConfigError(
            f"{config.index} is an index by {searcher.card.metric}; build one with --metric cosine for duplicates"
        )
    rows = searcher.rows
    pairs = near_pairs(searcher, config.cosine)
    group_N = _groups(searcher, pairs)
    report = _report(searcher, group_N, config.splits)
    leaks = [group for group in report if len(group["splits"]) > 1]
    conflicts = [group for group in report if len(group["labels"]) > 1]
    if config.out:
        groups = _all_rows(searcher, group_N, config.splits)
        write_answers(config.out, [groups], groups.schema)
    report.sort(key=lambda group: (-len(group["splits"]), -len(group["labels"]), -group["size"]))
    say(f"{len(report)} groups, {len(leaks)} across splits, {len(conflicts)} across labels")
    zeros = len(rows.zero_positions)
    if zeros:
        say(f"{zeros} rows have an all-zero vector, which has no direction: they are in no group")
    if pairs.cut_off:
        say(f"{pairs.cut_off} vectors have more than {MAX_K} near ones: `pairs` counts the nearest of them")
    return {
        "index": to_uri(config.index),
        "version": searcher.card.version,
        "cosine": config.cosine,
        "rows": len(rows),
        "zero_vectors": zeros,
        "pairs": _count(searcher, pairs),
        "groups": len(report),
        "rows_in_groups": sum(group["size"] for group in report),
        "leaks": len(leaks),
        "label_conflicts": len(conflicts),
        "first": report[: config.max_groups],
        "seconds": round(time.monotonic() - began, 3),
    }


def near_pairs(searcher: Searcher, cosine: float) -> NearPairs:
    """Find pairs of distinct vectors whose cosine is at least the given one."""
    nodes_U = searcher.rows.nodes_U  # a tensor
    first: list[np.ndarray] = [np.empty(0, np.int64)]
    second: list[np.ndarray] = [np.empty(0, np.int64)]
    cut_off = 0
    for nodes_B, vectors_BD in _blocks(searcher):
        k = FIRST_K
        while len(nodes_B):
            found_BK, cosines_BK = _exact_neighbours(searcher, vectors_BD, k + 1)
            near_BK = (found_BK >= 0) & (found_BK != nodes_B[:, None]) & (cosines_BK >= cosine)
            # Too few were asked for where even the last is near; these come again with more.
            is_cut_B = (found_BK[:, -1] >= 0) & (cosines_BK[:, -1] >= cosine) & (found_BK.shape[1] < len(nodes_U))
            again_B = is_cut_B & (k < MAX_K)
            cut_off += int((is_cut_B & ~again_B).sum())
            kept_BK = near_BK & ~again_B[:, None]
            at_B, _ = np.nonzero(kept_BK)
            first.append(np.searchsorted(nodes_U, nodes_B[at_B]))
            second.append(np.searchsorted(nodes_U, found_BK[kept_BK]))
            nodes_B, vectors_BD, k = nodes_B[again_B], vectors_BD[again_B], 4 * k
    ends = np.concatenate(first), np.concatenate(second)
    pairs = np.unique(np.minimum(*ends) * len(nodes_U) + np.maximum(*ends))
    return NearPairs(pairs // max(1, len(nodes_U)), pairs % max(1, len(nodes_U)), cut_off)


def _blocks(searcher: Searcher) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for nodes_B, vectors_BD in searcher.exact.blocks():
        for start in range(0, len(nodes_B), _QUERIES_AT_ONCE):
            yield nodes_B[start : start + _QUERIES_AT_ONCE], vectors_BD[start : start + _QUERIES_AT_ONCE]


def _exact_neighbours(searcher: Searcher, vectors_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest nodes that the index finds, nearest first, and their cosines by the vectors themselves."""
    nodes_BK, cosines_BK = searcher.search_distinct(np.ascontiguousarray(vectors_BD), k)
    if searcher.scores_are_exact:
        return nodes_BK, cosines_BK
    return nearest_of([(nodes_BK, searcher.exact.nearness(vectors_BD, nodes_BK))], k)


def _groups(searcher: Searcher, pairs: NearPairs) -> np.ndarray:
    """For each row a number that it shares with those of its group."""
    rows = searcher.rows
    group_U = connected_components(len(rows.nodes_U), pairs.first_E, pairs.second_E)
    group_N = len(group_U) + np.arange(len(rows))  # a row in no node is alone
    has_node_N = rows.nodes_N != NO_NODE
    group_N[has_node_N] = group_U[np.searchsorted(rows.nodes_U, rows.nodes_N[has_node_N])]
    return group_N


def _count(searcher: Searcher, pairs: NearPairs) -> int:
    """Pairs of rows: those of one vector, and those of two near ones."""
    rows = searcher.rows
    sizes_U = np.bincount(np.searchsorted(rows.nodes_U, rows.nodes_N[rows.nodes_N != NO_NODE]), minlength=len(rows.nodes_U))
    return int((sizes_U * (sizes_U - 1) // 2).sum() + (sizes_U[pairs.first_E] * sizes_U[pairs.second_E]).sum())


def _split_of(uri: str, splits: tuple[str, ...]) -> str | None:
    return next((split for split in splits if uri.startswith(split)), None)


def _report(searcher: Searcher, group_N: np.ndarray, splits: tuple[str, ...]) -> list[dict[str, Any]]:
    """Groups of two rows or more."""
    order = np.argsort(group_N, kind="stable")
    _, starts, sizes = np.unique(group_N[order], return_index=True, return_counts=True)
    report = []
    for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
        rows = searcher.rows.table.select(["uri", "label"]).take(pa.array(order[start : start + size])).to_pylist()
        found = {split for row in rows if (split := _split_of(row["uri"], splits)) is not None}
        labels = {row["label"] for row in rows if row["label"] is not None}
        report.append({"size": int(size), "splits": sorted(found), "labels": sorted(labels), "rows": rows[:ROWS_SHOWN]})
    return report


def _all_rows(searcher: Searcher, group_N: np.ndarray, splits: tuple[str, ...]) -> pa.Table:
    _, inverse, sizes = np.unique(group_N, return_inverse=True, return_counts=True)
    at = np.flatnonzero(sizes[inverse] > 1)
    at = at[np.argsort(group_N[at], kind="stable")]
    rows = searcher.rows.table.select(["uri", "label"]).take(pa.array(at))
    rows = rows.add_column(0, "group", pa.array(group_N[at]))
    return rows.append_column("split", pa.array([_split_of(uri, splits) for uri in rows["uri"].to_pylist()], pa.string()))
