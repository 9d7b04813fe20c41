"""`tlray duplicates`: groups of rows that are nearly the same, and those that cross splits or labels.

Rows are joined where their cosine is at least the given one, directly or through others (connected components). Neighbours
come from the index, so a pair may be missed as often as its recall says; cosines are exact.

Shape legend: B queries, K neighbours, E pairs, N rows.
"""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tlray.config import DuplicatesConfig
from tlray.errors import ConfigError
from tlray.lake.storage.uri import to_uri
from tlray.progress import say
from tlray.scoring import connected_components
from tlray.search.query.searcher import Searcher

FIRST_K = 16
MAX_K = 1024
"""Neighbours asked for: few at first, four times as many for rows all of whose neighbours are near enough. Beyond the last
number a group still holds together through its other members."""

ROWS_SHOWN = 10


def duplicates(config: DuplicatesConfig) -> dict[str, Any]:
    """Report near-duplicates.

    Args:
        config: of the command.

    Returns:
        The command's JSON object: counts, and the groups that matter most.

    Raises:
        ConfigError: an index that is not by cosine.
    """
    began = time.monotonic()
    searcher = Searcher.open(config.index)
    if searcher.card.metric != "cosine":
        raise ConfigError(
            f"{config.index} is an index by {searcher.card.metric}; build one with --metric cosine for duplicates"
        )
    first_E, second_E, cosines_E = near_pairs(searcher, config.cosine)
    group_N = connected_components(len(searcher.rows), first_E, second_E)
    report = _report(searcher, group_N, config.splits)
    leaks = [group for group in report if len(group["splits"]) > 1]
    conflicts = [group for group in report if len(group["labels"]) > 1]
    if config.out:
        pq.write_table(_all_rows(searcher, group_N, config.splits), config.out, compression="zstd")
    report.sort(key=lambda group: (-len(group["splits"]), -len(group["labels"]), -group["size"]))
    say(f"{len(report)} groups, {len(leaks)} across splits, {len(conflicts)} across labels")
    return {
        "index": to_uri(config.index),
        "version": searcher.card.version,
        "cosine": config.cosine,
        "rows": len(searcher.rows),
        "pairs": len(cosines_E),
        "groups": len(report),
        "rows_in_groups": sum(group["size"] for group in report),
        "leaks": len(leaks),
        "label_conflicts": len(conflicts),
        "first": report[: config.max_groups],
        "seconds": round(time.monotonic() - began, 3),
    }


def near_pairs(searcher: Searcher, cosine: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of rows, each once, whose cosine is at least the given one.

    Returns:
        Positions of the first and the second rows, and the cosines; all of length E.
    """
    first: list[np.ndarray] = [np.empty(0, np.int64)]
    second: list[np.ndarray] = [np.empty(0, np.int64)]
    cosines: list[np.ndarray] = [np.empty(0, np.float32)]
    for positions_B, vectors_BD in _blocks(searcher):
        k = FIRST_K
        while len(positions_B):
            hits = searcher.search(vectors_BD, k, leave_out_B=positions_B)
            exact_BK = _exact_cosines(searcher, vectors_BD, hits.positions_BK, hits.scores_BK)
            near_BK = (exact_BK >= cosine) & (hits.positions_BK >= 0)
            # Too few were asked for where even the last is near; these come again with more.
            again_B = near_BK[:, -1] & (k < min(MAX_K, len(searcher.rows) - 1))
            kept_BK = near_BK & ~again_B[:, None]
            at_B, _ = np.nonzero(kept_BK)
            first.append(positions_B[at_B])
            second.append(hits.positions_BK[kept_BK])
            cosines.append(exact_BK[kept_BK])
            positions_B, vectors_BD, k = positions_B[again_B], vectors_BD[again_B], 4 * k
    low = np.minimum(np.concatenate(first), np.concatenate(second))
    high = np.maximum(np.concatenate(first), np.concatenate(second))
    _, once = np.unique(low * len(searcher.rows) + high, return_index=True)
    return low[once], high[once], np.concatenate(cosines)[once]


def _blocks(searcher: Searcher) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for ids_B, vectors_BD in searcher.exact.blocks():
        for start in range(0, len(ids_B), 4096):
            yield searcher.rows.positions(ids_B[start : start + 4096]), vectors_BD[start : start + 4096]


def _exact_cosines(searcher: Searcher, queries_BD: np.ndarray, positions_BK: np.ndarray, scores_BK: np.ndarray) -> np.ndarray:
    """The scores themselves where they are exact, else from the vectors of what was found."""
    if searcher.scores_are_exact:
        return scores_BK
    found = np.unique(positions_BK[positions_BK >= 0])
    vectors_ND = searcher.vectors(found)
    at_BK = np.searchsorted(found, np.maximum(positions_BK, found[0] if len(found) else 0))
    exact_BK = np.stack([queries_BD[row] @ vectors_ND[at].T for row, at in enumerate(at_BK)])
    return np.where(positions_BK >= 0, exact_BK, -np.inf)


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
