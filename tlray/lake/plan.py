"""The plan: what a run has to do so that the table holds what the source lists. Pure data, made before any work.

`compare` holds the listing against the table; `Difference.cut` makes units of what is to be done.

Planning compares 16-byte digests, never strings: 42 bytes a row of the table and the listing's own columns for the
images that are to be embedded are all that stays in memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.lake.parts import Part, read_part
from tlray.lake.sources import PAGE_SCHEMA, Source
from tlray.lake.state import TableState, digests, short_hashes
from tlray.lake.table import Table

UNITS_PER_SLOT = 8
"""Units that each parallel worker should get at least, so that the last one does not leave the others idle for long."""

LEAST_UNIT_IMAGES = 32


@dataclass(frozen=True)
class Unit:
    """A slice of the plan that becomes one part (a shard: a few parts, committed together).

    Attributes:
        index: its number in the plan.
        items: uri, etag, size_bytes, label of its images, or the one row of a shard.
    """

    index: int
    items: pa.Table


@dataclass(frozen=True)
class StaleRows:
    """Rows of a live part that are replaced or deleted.

    Attributes:
        part: the part that holds them.
        rows: their positions in it.
    """

    part: Part
    rows: np.ndarray


@dataclass(frozen=True)
class Group:
    """Units and stale rows that must be committed together, so that no reader sees an image twice or not at all.

    Attributes:
        units: indexes of units whose rows replace stale ones.
        stale: what goes at the same moment.
    """

    units: tuple[int, ...]
    stale: tuple[StaleRows, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a run does, cut for the workers at hand.

    Attributes:
        kind: what an item is: an image, or a file that holds images.
        units: the work.
        groups: how it is committed; each unit is in exactly one.
        todo: items to embed.
        todo_bytes: their size, as far as the listing says it.
    """

    kind: str
    units: Sequence[Unit]
    groups: Sequence[Group]
    todo: int
    todo_bytes: int


@dataclass(frozen=True)
class Difference:
    """How a source differs from its table; `cut` makes a plan of it.

    Attributes:
        kind: as in `Plan`.
        listed: items in the source.
        unchanged: items with nothing to do.
        new_items: listing of items that the table does not have.
        stale: items whose bytes or label changed, and failed ones to be tried again.
        deleted_rows: rows (positions in `state`) that the source does not list any more.
        state: the table.
    """

    kind: str
    listed: int
    unchanged: int
    new_items: pa.Table
    stale: "StaleItems"
    deleted_rows: np.ndarray
    state: TableState

    @property
    def counts(self) -> dict[str, int]:
        """Listed, new, changed, deleted, unchanged: items, but rows of the table where they are deleted."""
        return {
            "listed": self.listed,
            "new": len(self.new_items),
            "changed": len(self.stale.items),
            "deleted": len(self.deleted_rows),
            "unchanged": self.unchanged,
        }

    @property
    def is_empty(self) -> bool:
        """Whether the table is where its source is."""
        return not (len(self.new_items) or len(self.stale.items) or len(self.deleted_rows))

    def cut(self, *, unit_images: int, slots: int) -> Plan:
        """Cut the work into units, and group them with the rows that they replace.

        Args:
            unit_images: most images in a unit.
            slots: units that can be worked on at once; a small plan is cut finer so that none is idle.
        """
        todo = len(self.new_items) + len(self.stale.items)
        fine = max(LEAST_UNIT_IMAGES, -(-todo // (slots * UNITS_PER_SLOT)))
        size = 1 if self.kind != "images" else min(unit_images, fine)
        units = [Unit(index, items) for index, items in enumerate(_slices(self.new_items, size))]
        groups = [Group((unit.index,)) for unit in units]
        groups += _stale_groups(self.stale, self.deleted_rows, self.state, size, units)
        todo_bytes = sum(pc.sum(items["size_bytes"]).as_py() or 0 for items in (self.new_items, self.stale.items))
        return Plan(self.kind, units, groups, todo, todo_bytes)


def compare(source: Source, table: Table | None, *, retry_codes: Iterable[str] = ()) -> Difference:
    """Hold the source's listing against the table.

    Args:
        source: what there should be.
        table: what there is; None for nothing.
        retry_codes: error codes whose images are to be embedded again.
    """
    state = TableState.load(table, source.kind, retry_codes)
    new, changed = _Gathered(), _Gathered()
    first: list[np.ndarray] = [np.empty(0, np.int64)]
    count: list[np.ndarray] = [np.empty(0, np.int64)]
    unchanged = 0
    for page in source.pages():
        known = _look_up(page, state)
        new.add(page.filter(pa.array(known.count == 0)))
        changed.add(page.filter(pa.array(known.stale)))
        first.append(known.first[known.stale])
        count.append(known.count[known.stale])
        unchanged += int(np.count_nonzero(known.unchanged))
    new_items = _without_duplicates(new.table())
    stale = StaleItems(changed.table(), np.concatenate(first), np.concatenate(count))
    return Difference(
        kind=source.kind,
        listed=len(new_items) + len(stale.items) + unchanged,
        unchanged=unchanged,
        new_items=new_items,
        stale=stale,
        deleted_rows=_deleted(state, source, table),
        state=state,
    )


@dataclass(frozen=True)
class StaleItems:
    """Items to embed again: their listing, and where their old rows are in the state (first position and count)."""

    items: pa.Table
    first: np.ndarray
    count: np.ndarray


class _Gathered:
    """Pages of a listing, kept as few large chunks."""

    CHUNK_ROWS = 65_536

    def __init__(self) -> None:
        self._chunks: list[pa.Table] = []
        self._pages: list[pa.Table] = []
        self._rows = 0

    def add(self, page: pa.Table) -> None:
        if not len(page):
            return
        self._pages.append(page)
        self._rows += len(page)
        if self._rows >= self.CHUNK_ROWS:
            self._combine()

    def _combine(self) -> None:
        if self._pages:
            self._chunks.append(pa.concat_tables(self._pages).combine_chunks())
        self._pages, self._rows = [], 0

    def table(self) -> pa.Table:
        self._combine()
        return pa.concat_tables([PAGE_SCHEMA.empty_table(), *self._chunks])


def _positions(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """All positions of the runs that start at `first` and are `count` long, one run after the other."""
    offsets = np.cumsum(count) - count
    return np.repeat(first - offsets, count) + np.arange(int(count.sum()))


@dataclass(frozen=True)
class _Known:
    """Per item of a page: where its rows are in the state, and what is to be done. A repeated item is neither."""

    first: np.ndarray
    count: np.ndarray
    stale: np.ndarray
    unchanged: np.ndarray


def _look_up(page: pa.Table, state: TableState) -> _Known:
    """Look a page up in the state, and mark the rows found there as seen."""
    keys = digests(page["uri"].to_pylist())
    first = np.searchsorted(state.keys, keys, "left")
    count = np.searchsorted(state.keys, keys, "right") - first
    stale, unchanged = np.zeros(len(page), bool), np.zeros(len(page), bool)
    # A manifest may name an image twice: the first time counts.
    _, once = np.unique(keys, return_index=True)
    known = once[count[once] > 0]
    known = known[~state.seen[first[known]]]
    if len(known):
        etags = short_hashes(page["etag"])[known]
        # A source that gives no etag or no label (a bare manifest, labels inside shards) cannot say that they changed.
        is_stale = (etags != 0) & (etags != state.etags[first[known]])
        if page["label"].null_count < len(page):
            is_stale |= short_hashes(page["label"])[known] != state.labels[first[known]]
        positions = _positions(first[known], count[known])
        state.seen[positions] = True
        is_stale |= np.logical_or.reduceat(state.retry[positions], np.cumsum(count[known]) - count[known])
        stale[known], unchanged[known] = is_stale, ~is_stale
    return _Known(first, count, stale, unchanged)


def _deleted(state: TableState, source: Source, table: Table | None) -> np.ndarray:
    """Positions in the state of rows that the source covers and does not list."""
    unseen = np.flatnonzero(~state.seen)
    gone: list[np.ndarray] = [np.empty(0, np.int64)]
    for index in np.unique(state.part_index[unseen]):
        assert table is not None
        candidates = unseen[state.part_index[unseen] == index]
        uris = read_part(table.uri, state.parts[index].path, ["uri"])["uri"].combine_chunks()
        covered = source.covers(uris.take(pa.array(state.row[candidates])))
        gone.append(candidates[np.asarray(covered, bool)])
    return np.concatenate(gone)


def _without_duplicates(items: pa.Table) -> pa.Table:
    """Items with each URI once, the first kept: a manifest may name an image twice.

    Half of each digest is looked at first, in place: equal URIs have equal halves, others hardly ever, and at millions of
    items the whole digests with their order would be the most that a plan takes.
    """
    halves, start = np.empty(len(items), np.uint64), 0
    for chunk in items["uri"].chunks:
        halves[start : start + len(chunk)] = digests(chunk.to_pylist()).view(np.uint64)[::2]
        start += len(chunk)
    halves.sort()
    if not (halves[1:] == halves[:-1]).any():
        return items
    keys = np.concatenate([digests(chunk.to_pylist()) for chunk in items["uri"].chunks])
    _, first = np.unique(keys, return_index=True)
    return items if len(first) == len(items) else items.take(pa.array(np.sort(first)))


def _slices(items: pa.Table, size: int) -> Iterator[pa.Table]:
    for start in range(0, len(items), size):
        yield items.slice(start, size)


def _stale_groups(stale: StaleItems, deleted_rows: np.ndarray, state: TableState, size: int, units: list[Unit]) -> list[Group]:
    """Groups of parts that are rewritten at the same moment, each with a unit's worth of work; appends their units.

    All stale rows of a part go in one rewrite. An item that has rows in several parts (a shard) ties those together.
    """
    cluster = _Clusters(len(state.parts))
    for index in np.flatnonzero(stale.count > 1):
        cluster.join(state.part_index[stale.first[index] : stale.first[index] + stale.count[index]])
    roots = np.array([cluster.root(index) for index in range(len(state.parts))], np.int64)
    item_roots = roots[state.part_index[stale.first]]
    deleted_roots = roots[state.part_index[deleted_rows]]
    by_item, by_deleted = np.argsort(item_roots, kind="stable"), np.argsort(deleted_roots, kind="stable")
    groups: list[Group] = []
    pending: list[int] = []
    pending_items = 0

    def flush() -> None:
        ours = by_item[_within(item_roots[by_item], pending)]
        first = len(units)
        units.extend(Unit(first + at, items) for at, items in enumerate(_slices(stale.items.take(pa.array(ours)), size)))
        rows = _positions(stale.first[ours], stale.count[ours])
        gone = deleted_rows[by_deleted[_within(deleted_roots[by_deleted], pending)]]
        groups.append(Group(tuple(range(first, len(units))), _stale_rows(np.concatenate([rows, gone]), state)))

    for root, rows in zip(*np.unique(np.concatenate([item_roots, deleted_roots]), return_counts=True), strict=True):
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


def _stale_rows(positions: np.ndarray, state: TableState) -> tuple[StaleRows, ...]:
    parts = state.part_index[positions]
    return tuple(StaleRows(state.parts[index], np.sort(state.row[positions[parts == index]])) for index in np.unique(parts))


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
