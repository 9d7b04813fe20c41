"""What a run has to do, and how it is cut: into units for the workers at hand, and into groups that are committed together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.extraction.plan.plan import Group, Plan, Revalued, StaleItems, StaleRows, Unit, Where
from tlray.lake.table.parts import Part

UNITS_PER_SLOT = 8
"""Units that each parallel worker should get at least, so that the last one does not leave the others idle for long."""

LAST_UNITS_PER_SLOT = 2
"""Towards the end units get smaller, so that all workers finish together: each leaves so many like it to each slot, down to an
eighth of the others' size (guided self-scheduling: Polychronopoulos and Kuck, IEEE Transactions on Computers 36, 1987)."""

LEAST_UNIT_IMAGES = 32


@dataclass(frozen=True)
class Backlog:
    """What a run has to do over some range of names, before it is cut into units for the workers at hand.

    Attributes:
        kind: as in `Plan`.
        new_items: listing of items that the table does not have.
        stale: items whose bytes or label changed, and failed ones to be tried again.
        deleted: rows that the source does not list any more.
        revalued: rows of which nothing but values of columns that travel have changed.
        unchanged: items with nothing to do.
        left: listed items that are not compared yet; the next backlogs have them.
        parts: of the table, that `Where.part` counts in.
    """

    kind: str
    new_items: pa.Table
    stale: StaleItems
    deleted: Where
    unchanged: int
    left: int
    parts: Sequence[Part]
    revalued: Revalued = field(default_factory=Revalued.none)

    @property
    def counts(self) -> dict[str, int]:
        """Listed, new, changed, deleted, unchanged, and rewritten if any are: items, but rows where they are deleted."""
        new, changed, rewritten = len(self.new_items), len(self.stale.items), len(self.revalued.values)
        return {
            "listed": new + changed + rewritten + self.unchanged,
            "new": new,
            "changed": changed,
            **({"rewritten": rewritten} if rewritten else {}),
            "deleted": len(self.deleted.row),
            "unchanged": self.unchanged,
        }

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to embed and no row to delete or to write again."""
        return not (len(self.new_items) or len(self.stale.items) or len(self.deleted.row) or len(self.revalued.values))

    def cut(self, *, unit_images: int, slots: int) -> Plan:
        """Cut the work into units, and group them with the rows that they replace.

        Args:
            unit_images: most images in a unit.
            slots: units that can be worked on at once; a small plan is cut finer so that none is idle.
        """
        todo = len(self.new_items) + len(self.stale.items)
        fine = max(LEAST_UNIT_IMAGES, -(-todo // (slots * UNITS_PER_SLOT)))
        size = 1 if self.kind != "images" else min(unit_images, fine)
        units = [Unit(index, items) for index, items in enumerate(_tapered(self.new_items, size, slots))]
        groups = [Group((unit.index,)) for unit in units]
        groups += _stale_groups(self.stale, self.deleted, self.revalued, self.parts, size, units)
        sizes = [items["size_bytes"] for items in (self.new_items, self.stale.items)]
        todo_bytes = sum(pc.sum(some).as_py() or 0 for some in sizes)
        return Plan(self.kind, units, groups, todo, todo_bytes, sum(some.null_count for some in sizes))


def positions(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """All positions of the stretches that start at `first` and are `count` long, one stretch after the other."""
    offsets = np.cumsum(count) - count
    return np.repeat(first - offsets, count) + np.arange(int(count.sum()))


def _slices(items: pa.Table, size: int) -> Iterator[pa.Table]:
    for start in range(0, len(items), size):
        yield items.slice(start, size)


def _tapered(items: pa.Table, size: int, slots: int) -> Iterator[pa.Table]:
    start, least = 0, max(LEAST_UNIT_IMAGES, size // 8)
    while start < len(items):
        share = -(-(len(items) - start) // (slots * LAST_UNITS_PER_SLOT))
        taken = min(size, max(least, share))
        yield items.slice(start, taken)
        start += taken


def _stale_groups(
    stale: StaleItems, deleted: Where, revalued: Revalued, parts: Sequence[Part], size: int, units: list[Unit]
) -> list[Group]:
    """Groups of parts that are rewritten at the same moment, each with a unit's worth of work; appends their units.

    All stale rows of a part go in one rewrite. An item that has rows in several parts (a shard) ties those together.
    """
    first = np.cumsum(stale.count) - stale.count
    cluster = _Clusters(len(parts))
    for index in np.flatnonzero(stale.count > 1):
        cluster.join(stale.where.part[first[index] : first[index] + stale.count[index]])
    roots = np.array([cluster.root(index) for index in range(len(parts))], np.int64)
    item_roots = roots[stale.where.part[first]]
    deleted_roots, revalued_roots = roots[deleted.part], roots[revalued.where.part]
    by_item, by_deleted, by_revalued = (np.argsort(some, kind="stable") for some in (item_roots, deleted_roots, revalued_roots))
    sorted_items = stale.items.take(pa.array(by_item))  # at once: to take from many chunks joins them all each time
    sorted_item_roots, sorted_deleted_roots = item_roots[by_item], deleted_roots[by_deleted]
    sorted_revalued_roots, sorted_values = revalued_roots[by_revalued], revalued.values.take(pa.array(by_revalued))
    groups: list[Group] = []
    pending: list[int] = []
    pending_items = 0

    def flush() -> None:
        span = _within(sorted_item_roots, pending)
        ours = by_item[span]
        start = len(units)
        items = sorted_items.slice(span.start, len(ours))
        units.extend(Unit(start + at, some) for at, some in enumerate(_slices(items, size)))
        rows = stale.where.take(positions(first[ours], stale.count[ours]))
        gone = deleted.take(by_deleted[_within(sorted_deleted_roots, pending)])
        again = _within(sorted_revalued_roots, pending)
        other = Revalued(sorted_values.slice(again.start, again.stop - again.start), revalued.where.take(by_revalued[again]))
        groups.append(Group(tuple(range(start, len(units))), _stale_rows(Where.concat([rows, gone]), other, parts)))

    all_roots = np.concatenate([item_roots, deleted_roots, revalued_roots])
    for root, rows in zip(*np.unique(all_roots, return_counts=True), strict=True):
        pending.append(int(root))
        pending_items += int(rows)
        if pending_items >= size:
            flush()
            pending, pending_items = [], 0
    if pending:
        flush()
    return groups


def _within(sorted_roots: np.ndarray, wanted: Sequence[int]) -> slice:
    """Where a run of consecutive roots lies among the sorted ones."""
    return slice(int(np.searchsorted(sorted_roots, wanted[0], "left")), int(np.searchsorted(sorted_roots, wanted[-1], "right")))


def _stale_rows(where: Where, revalued: Revalued, parts: Sequence[Part]) -> tuple[StaleRows, ...]:
    found = []
    for index in np.unique(np.concatenate([where.part, revalued.where.part])):
        at = np.flatnonzero(revalued.where.part == index)
        values = revalued.values.take(pa.array(at)) if len(at) else None
        rows = np.sort(where.row[where.part == index])
        found.append(StaleRows(parts[index], rows, revalued.where.row[at], values))
    return tuple(found)


class _Clusters:
    """Disjoint sets of part indexes (union-find with path halving; Tarjan and van Leeuwen 1984)."""

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count)

    def root(self, index: int) -> int:
        parent = self._parent
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = int(parent[index])
        return index

    def join(self, indexes: np.ndarray) -> None:
        first = self.root(int(indexes[0]))
        for index in np.unique(indexes[1:]):
            self._parent[self.root(int(index))] = first
