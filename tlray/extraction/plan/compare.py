"""What is to be done: the source's listing held against the table's rows, a range of names at a time, in bounded memory.

Both sides are sorted by name first (`tlray.lake.table.row_identities.external_sort`: on local disk, as far as they do not fit
in memory), then compared range by range. What is to be done gathers until it is a budget's worth, becomes a `Backlog`, and is
worked off before the next one is looked for. Neighbours in name are neighbours in the table's parts, so few parts are touched
by two backlogs.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.columns.column import Column
from tlray.columns.differences import differ
from tlray.config import PolicyConfig
from tlray.extraction.plan.backlog import Backlog, positions
from tlray.extraction.plan.plan import Revalued, StaleItems, Where
from tlray.lake.source.listing.report import ListingReport
from tlray.lake.source.member_uri import containers_of
from tlray.lake.source.source import PAGE_SCHEMA
from tlray.lake.table.parts import Part
from tlray.lake.table.row_identities.external_sort import MEMORY_BYTES, RANGE_ROWS, SortedRuns, cut_ranges
from tlray.lake.table.row_identities.identities import ITEM, PART, RETRY, ROW, identities, identity_schema
from tlray.lake.table.table import Table

FOLLOW = PolicyConfig()

STEP_ROWS = 2**15
"""Rows of a side that are compared at once. Names are found by a hash table: one of so many stays in the processor's cache
(6 MB with the names), one of a million does not."""


class Listed(Protocol):
    """What is compared with the table; `tlray.lake.source.source.Source` is one."""

    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def gives_labels(self) -> bool: ...  # noqa: D102
    @property
    def page_schema(self) -> pa.Schema: ...  # noqa: D102
    def pages(self, report: ListingReport | None = None) -> Iterator[pa.Table]: ...  # noqa: D102
    def covers(self, uris: pa.Array) -> np.ndarray: ...  # noqa: D102


def find_backlogs(
    source: Listed,
    table: Table | None,
    scratch: Path,
    *,
    retry_codes: Iterable[str] = (),
    policy: PolicyConfig = FOLLOW,
    budget: int = RANGE_ROWS,
    memory_bytes: int = MEMORY_BYTES,
    report: ListingReport | None = None,
    columns: Sequence[Column] = (),
) -> Iterator[Backlog]:
    """Hold the source's listing against the table. The whole source is listed before the first backlog comes.

    Args:
        source: what there should be.
        table: what there is, at the version at hand; None for nothing.
        scratch: a folder on local disk for what does not fit in memory: of each side 2 GiB, and 66 bytes for each row above;
            the caller removes it.
        retry_codes: error codes whose images are to be embedded again.
        policy: whether deletions and changes are followed.
        budget: rows that are read at once, and items or rows to be dealt with in one backlog.
        memory_bytes: as much of both sides stays in memory.
        report: is told what is left out: by the source's listing when the first backlog comes; of names that come twice, and
            of items without a label, when the last one has come.
        columns: that travel, those of the table among them, where an item is an image. One that the source's pages do not have
            keeps its values.

    Yields:
        At least one backlog; together they cover all keys, none twice. Rows of parts are those of `table` as it is
        given, whatever is committed between one backlog and the next.
    """
    report = report or ListingReport()
    parts = table.parts() if table is not None else []
    rows: Iterator[pa.Table] = iter(())
    if table is not None:
        in_shards = {} if source.kind == "images" else {"item_of": containers_of}
        rows = identities(table, parts, retry_codes, columns=columns, **in_shards)
    held = SortedRuns(identity_schema(columns), ITEM, scratch, memory_bytes=memory_bytes).add_all(rows)
    listed = SortedRuns(source.page_schema, "uri", scratch, memory_bytes=held.memory_bytes).add_all(source.pages(report))
    left = listed.rows
    gathered = _Gathered(source.page_schema, columns)
    for bound in cut_ranges([listed, held], budget):
        page = listed.pop_below(bound)
        left -= len(page)
        for ours, theirs in _in_step(page, held.pop_below(bound)):
            once = _once(ours, report)
            report.unlabelled += once["label"].null_count if source.gives_labels else 0
            gathered.add(_compare_range(once, theirs, source, policy))
        if gathered.size >= budget and bound is not None:
            yield gathered.backlog(source, left, parts)
            gathered = _Gathered(source.page_schema, columns)
    yield gathered.backlog(source, left, parts)


@dataclass(frozen=True)
class _Found:
    """What is to be done in one range."""

    new_items: pa.Table
    stale: StaleItems
    deleted: Where
    revalued: Revalued
    unchanged: int


class _Gathered:
    """What is to be done in the ranges since the last backlog.

    Args:
        page_schema: of the source.
        columns: that travel.
    """

    def __init__(self, page_schema: pa.Schema, columns: Sequence[Column]) -> None:
        self.size = 0
        self._page_schema = page_schema
        self._stale_schema = pa.schema([*page_schema, *(each.field for each in columns if each.name not in page_schema.names)])
        self._values_schema = pa.schema([each.field for each in columns if each.name in page_schema.names])
        self._found: list[_Found] = []

    def add(self, found: _Found) -> None:
        self.size += len(found.new_items) + len(found.stale.items) + len(found.deleted.row) + len(found.revalued.values)
        self._found.append(found)

    def backlog(self, source: Listed, left: int, parts: Sequence[Part]) -> Backlog:
        found, nothing = self._found, source.page_schema.empty_table()
        return Backlog(
            kind=source.kind,
            new_items=pa.concat_tables([nothing, *(one.new_items for one in found)]),
            stale=StaleItems(
                pa.concat_tables([self._stale_schema.empty_table(), *(one.stale.items for one in found)]),
                np.concatenate([np.empty(0, np.int64), *(one.stale.count for one in found)]),
                Where.concat([one.stale.where for one in found]),
            ),
            deleted=Where.concat([one.deleted for one in found]),
            revalued=Revalued(
                pa.concat_tables([self._values_schema.empty_table(), *(one.revalued.values for one in found)]),
                Where.concat([one.revalued.where for one in found]),
            ),
            unchanged=sum(one.unchanged for one in found),
            left=left,
            parts=parts,
        )


def _in_step(listed: pa.Table, held: pa.Table) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Both sides, sorted, cut at the same names into stretches of at most STEP_ROWS different names."""
    sides = [(listed, listed["uri"]), (held, held[ITEM])]
    bounds = sorted({keys[at].as_py() for _, keys in sides for at in range(STEP_ROWS, len(keys), STEP_ROWS)})
    starts = [0, 0]
    for bound in [*bounds, None]:
        ends = [
            len(keys) if bound is None else bisect_left(keys, bound, start, key=lambda name: name.as_py())
            for start, (_, keys) in zip(starts, sides, strict=True)
        ]
        one, other = (rows.slice(start, end - start) for start, end, (rows, _) in zip(starts, ends, sides, strict=True))
        yield one.combine_chunks(), other.combine_chunks()
        starts = ends


def _once(page: pa.Table, report: ListingReport) -> pa.Table:
    """Sorted items with each URI once, the first kept: a manifest may name an image twice."""
    starts = _starts(page["uri"])
    if len(starts) == len(page):
        return page
    repeated = int(np.flatnonzero(np.diff(np.append(starts, len(page))) > 1)[0])
    report.leave_out("repeated", page["uri"][int(starts[repeated])].as_py(), len(page) - len(starts))
    return page.take(pa.array(starts))


def _starts(keys: pa.ChunkedArray) -> np.ndarray:
    """The positions in a sorted column at which another value begins."""
    if not len(keys):
        return np.empty(0, np.int64)
    differs = pc.not_equal(keys.slice(1), keys.slice(0, len(keys) - 1))
    return np.append(0, np.flatnonzero(differs) + 1)


def _compare_range(listed: pa.Table, held: pa.Table, source: Listed, policy: PolicyConfig) -> _Found:
    """Compare all that the source lists in one range of names with all that the table holds in it.

    Args:
        listed: pages of the source, sorted, each URI once.
        held: `identity_schema`, sorted; a shard has many rows.
        source: asked which items it would list.
        policy: what is followed.
    """
    first = _starts(held[ITEM])
    count = np.diff(np.append(first, len(held)))
    items = held[ITEM].take(pa.array(first))
    where = Where(held[PART].to_numpy(), held[ROW].to_numpy())
    at = pc.index_in(listed["uri"], value_set=items)
    known = np.asarray(pc.is_valid(at), bool)
    index = at.filter(pa.array(known)).to_numpy().astype(np.int64)
    known_items = listed.filter(pa.array(known))
    retry = np.logical_or.reduceat(held[RETRY].to_numpy(), first) if len(first) else np.empty(0, bool)
    is_stale = retry[index]
    is_revalued = np.zeros(len(index), bool)
    if policy.changed == "follow":
        is_stale |= _differs(known_items, held.select(["etag", "label"]).take(pa.array(first[index])), source.gives_labels)
        is_revalued = ~is_stale & _has_other_values(known_items, held, first[index])
    deleted = np.empty(0, np.int64)
    if policy.deleted == "follow":
        unseen = np.ones(len(first), bool)
        unseen[index] = False
        deleted = np.flatnonzero(unseen)
        deleted = deleted[source.covers(items.take(pa.array(deleted)).combine_chunks())]
    stale = index[is_stale]
    stale_items = known_items.filter(pa.array(is_stale))
    if source.kind == "images" and not source.gives_labels:  # then what was labelled before stays so
        label = PAGE_SCHEMA.get_field_index("label")
        stale_items = stale_items.set_column(label, PAGE_SCHEMA.field(label), held["label"].take(pa.array(first[stale])))
    kept = [name for name in held.column_names if name not in (*_IDENTITY, *listed.column_names)]
    for name in kept:  # likewise
        stale_items = stale_items.append_column(held.schema.field(name), held[name].take(pa.array(first[stale])))
    values = known_items.select(_carried(known_items, held)).filter(pa.array(is_revalued))
    return _Found(
        new_items=listed.filter(pa.array(~known)),
        stale=StaleItems(stale_items, count[stale], where.take(positions(first[stale], count[stale]))),
        deleted=where.take(positions(first[deleted], count[deleted])),
        revalued=Revalued(values, where.take(first[index[is_revalued]])),
        unchanged=int(np.count_nonzero(~(is_stale | is_revalued))),
    )


_IDENTITY = frozenset(identity_schema().names)


def _carried(listed: pa.Table, held: pa.Table) -> list[str]:
    """The columns that travel, of which both sides have values."""
    return [name for name in held.column_names if name not in _IDENTITY and name in listed.column_names]


def _has_other_values(listed: pa.Table, held: pa.Table, first: np.ndarray) -> np.ndarray:
    """Which items have another value in a column that travels than the table's row has.

    Args:
        listed: N items that the table has.
        held: rows of the table.
        first: of each item its row there; an image has one alone.
    """
    differs = np.zeros(len(listed), bool)
    for name in _carried(listed, held):
        differs |= differ(listed[name], held[name].take(pa.array(first)))
    return differs


def _differs(listed: pa.Table, held: pa.Table, gives_labels: bool) -> np.ndarray:
    """Which items have another etag or label than the table's row says.

    A source that gives no etag or no labels (a bare manifest, labels inside shards) cannot say that they changed.
    """
    etag = pc.fill_null(pc.not_equal(listed["etag"], pc.fill_null(held["etag"], "")), False)
    differs: np.ndarray = etag.to_numpy()
    if gives_labels:
        one, other = listed["label"], held["label"]
        unequal = pc.fill_null(pc.not_equal(one, other), False)
        differs = differs | np.asarray(pc.or_(unequal, pc.xor(pc.is_null(one), pc.is_null(other))), bool)
    return differs
