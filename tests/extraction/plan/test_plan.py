"""Plan and commits against a plain Python model of what the table should hold."""

import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories import make_recipe_file, make_rows, read_with_polars, vector_of
from tlray.config import PolicyConfig
from tlray.extraction.commit.committer import Committer
from tlray.extraction.plan.backlog import Backlog
from tlray.extraction.plan.compare import find_backlogs
from tlray.extraction.plan.plan import Plan
from tlray.extraction.worker.pieces import Piece, WrittenParts
from tlray.lake.source.listing.report import ListingReport
from tlray.lake.source.source import PAGE_SCHEMA
from tlray.lake.table.parts import round_to_half, write_part
from tlray.lake.table.table import Table

Listing = dict[str, tuple[str, str | None]]


@dataclass
class ListedSource:
    """A source that lists what it is told."""

    listing: Listing
    kind: str = "images"
    covered: str = ""
    page_rows: int = 7
    repeat: bool = False

    page_schema = PAGE_SCHEMA

    @property
    def gives_labels(self) -> bool:
        return any(label is not None for _, label in self.listing.values())

    def pages(self, report: ListingReport | None = None) -> Iterator[pa.Table]:
        del report
        rows = [{"uri": uri, "etag": etag, "size_bytes": 5, "label": label} for uri, (etag, label) in self.listing.items()]
        rows += rows[: len(rows) // 2] if self.repeat else []
        for start in range(0, len(rows), self.page_rows):
            yield pa.Table.from_pylist(rows[start : start + self.page_rows], PAGE_SCHEMA)

    def covers(self, uris: pa.Array) -> np.ndarray:
        return np.array([uri.startswith(self.covered) for uri in uris.to_pylist()], bool)


def backlogs_for(source: ListedSource, table: Table | None, **options: Any) -> list[Backlog]:
    with tempfile.TemporaryDirectory() as scratch:
        return list(find_backlogs(source, table, Path(scratch), **options))


def backlog_for(source: ListedSource, table: Table | None, retry_codes: Sequence[str] = ()) -> Backlog:
    [backlog] = backlogs_for(source, table, retry_codes=retry_codes)
    return backlog


def counts_for(*arguments: Any, **options: Any) -> tuple[int, ...]:
    """New, changed, deleted, unchanged."""
    counts = backlog_for(*arguments, **options).counts
    assert counts["listed"] == counts["new"] + counts["changed"] + counts["unchanged"]
    return tuple(counts[name] for name in ("new", "changed", "deleted", "unchanged"))


def plan_for(source: ListedSource, table: Table | None, retry_codes: Sequence[str] = (), **sizes: int) -> Plan:
    return backlog_for(source, table, retry_codes).cut(**({"unit_images": 3, "slots": 1} | sizes))


def pieces_of(table: Table, plan: Plan, run_id: str, failing: set[str]) -> list[Piece[WrittenParts]]:
    """What workers would return: for shards, two members in two pieces."""
    pieces = []
    for unit in plan.units:
        items = [(row["uri"], row["etag"], row["label"]) for row in unit.items.to_pylist()]
        if plan.kind != "images":
            items = [(f"{items[0][0]}#{member}", items[0][1], member) for member in ("a.jpg", "b.jpg")]
        slices = [items] if plan.kind == "images" else [[item] for item in items]
        for index, some in enumerate(slices):
            parts = []
            for status, error in (("ok", None), ("failed", "corrupt")):
                chosen = [item for item in some if (item[0] in failing) == (status == "failed")]
                if chosen:
                    rows = make_rows(chosen, error)
                    parts.append(write_part(table.uri, rows, status=status, stem=run_id, recipe_id="r"))
            pieces.append(Piece(unit.index, index, index == len(slices) - 1, WrittenParts(tuple(parts), {}), {}))
    return pieces


def carry_out(table: Table, plan: Plan, run_id: str, failing: set[str] = frozenset(), rng: random.Random | None = None) -> None:
    """Finish pieces in a random order, some of them twice, with commits in between."""
    rng = rng or random.Random(0)
    clock = iter(range(10**6))
    committer = Committer(table, run_id, clock=lambda: float(next(clock)))
    committer.start(plan.groups)
    pieces = pieces_of(table, plan, run_id, failing)
    pieces += [piece for piece in pieces if rng.random() < 0.3]
    rng.shuffle(pieces)
    for piece in pieces:
        committer.add(piece)
        committer.flush(now=rng.random() < 0.3)
    committer.flush(now=True)
    assert not committer.flush(now=True), "nothing is left"


def assert_table_is(table: Table, listing: Listing, failing: set[str] = frozenset()) -> None:
    frame = read_with_polars(table)
    assert frame["uri"].to_list() == sorted(listing)
    for row in frame.iter_rows(named=True):
        etag, label = listing[row["uri"]]
        assert (row["etag"], row["label"]) == (etag, label)
        assert row["status"] == ("failed" if row["uri"] in failing else "ok")
        if row["uri"] not in failing:
            assert row["embedding"] == round_to_half(vector_of(row["uri"], etag)).tolist()


listings = st.dictionaries(
    st.sampled_from([f"s3://b/{name}.jpg" for name in "abcdefghijklmnopqrstuvwxyz"]),
    st.tuples(st.sampled_from("123"), st.sampled_from([None, "cat", "dog"])),
    max_size=26,
)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(listings, min_size=1, max_size=4),
    st.sets(st.sampled_from([f"s3://b/{name}.jpg" for name in "abcxyz"])),
    st.integers(),
)
def test_after_each_run_the_table_is_the_source(versions: list[Listing], failing: set[str], seed: int) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        table = Table.create(f"file://{folder}/t", make_recipe_file())
        before: Listing = {}
        for number, listing in enumerate(versions):
            if all(label is None for _, label in listing.values()):
                listing = {uri: (etag, before.get(uri, ("", None))[1]) for uri, (etag, _) in listing.items()}
            source = ListedSource(listing, repeat=rng.random() < 0.5)
            changed = {uri for uri in listing.keys() & before.keys() if listing[uri] != before[uri]}
            new, deleted = listing.keys() - before.keys(), before.keys() - listing.keys()
            assert counts_for(source, table) == (len(new), len(changed), len(deleted), len(listing) - len(new) - len(changed))
            plan = plan_for(source, table)
            carry_out(table, plan, f"run{number}", failing & listing.keys(), rng)
            assert_table_is(table, listing, failing & listing.keys())
            before = listing
        again = backlog_for(ListedSource(before), table)
        assert again.is_empty and again.unchanged == len(before) and not again.cut(unit_images=3, slots=1).groups


def test_rows_outside_the_source_stay(tmp_path) -> None:
    table = Table.create(f"file://{tmp_path}/t", make_recipe_file())
    first: Listing = {f"s3://b/x/{number}": ("1", "l") for number in range(5)}
    second: Listing = {f"s3://b/y/{number}": ("1", "l") for number in range(5)}
    carry_out(table, plan_for(ListedSource(first, covered="s3://b/x/"), table), "one")
    carry_out(table, plan_for(ListedSource(second, covered="s3://b/y/"), table), "two")
    del first["s3://b/x/0"]
    source = ListedSource(first, covered="s3://b/x/")
    assert counts_for(source, table) == (0, 0, 1, 4)
    carry_out(table, plan_for(source, table), "three")
    assert_table_is(table, first | second)


def test_failed_images_are_tried_again_only_when_asked(tmp_path) -> None:
    table = Table.create(f"file://{tmp_path}/t", make_recipe_file())
    listing: Listing = {f"s3://b/{number}": ("1", None) for number in range(10)}
    carry_out(table, plan_for(ListedSource(listing), table), "one", {"s3://b/3", "s3://b/4"})
    source = ListedSource(listing)
    assert counts_for(source, table) == (0, 0, 0, 10)
    assert counts_for(source, table, retry_codes=["empty"]) == (0, 0, 0, 10)
    assert counts_for(source, table, retry_codes=["corrupt"]) == (0, 2, 0, 8)
    carry_out(table, plan_for(source, table, ["corrupt"]), "two")
    assert_table_is(table, listing)


def test_shards_are_taken_whole(tmp_path) -> None:
    table = Table.create(f"file://{tmp_path}/t", make_recipe_file())

    def rows_of(listing: Listing) -> Listing:
        return {f"{uri}#{name}": (etag, name) for uri, (etag, _) in listing.items() for name in ("a.jpg", "b.jpg")}

    listing: Listing = {f"s3://b/{number}.tar": ("1", None) for number in range(6)}
    carry_out(table, plan_for(ListedSource(listing, kind="webdataset"), table), "one")
    assert_table_is(table, rows_of(listing))
    listing |= {"s3://b/2.tar": ("2", None), "s3://b/9.tar": ("1", None)}
    del listing["s3://b/4.tar"]
    source = ListedSource(listing, kind="webdataset")
    assert counts_for(source, table) == (1, 1, 2, 4)
    carry_out(table, plan_for(source, table), "two")
    assert_table_is(table, rows_of(listing))


def test_a_source_without_etags_sees_only_names(tmp_path) -> None:
    table = Table.create(f"file://{tmp_path}/t", make_recipe_file())
    carry_out(table, plan_for(ListedSource({"u": ("1", None)}), table), "one")
    nothing = cast("Any", None)
    assert counts_for(ListedSource({"u": (nothing, None), "v": (nothing, None)}), table) == (1, 0, 0, 1)


def test_a_small_plan_is_cut_for_all_workers() -> None:
    listing: Listing = {f"s3://b/{number}": ("1", None) for number in range(1000)}
    plan = plan_for(ListedSource(listing, page_rows=100), None, unit_images=400, slots=2)
    sizes = [len(unit.items) for unit in plan.units]
    assert [uri for unit in plan.units for uri in unit.items["uri"].to_pylist()] == sorted(listing)
    # Sixteenths, and less towards the end: never more than a quarter of what is left.
    assert sizes[0] == 63 and sizes == sorted(sizes, reverse=True)
    left = 1000 - np.cumsum([0, *sizes[:-1]])
    assert all(size <= max(32, -(-rest // 4)) for size, rest in zip(sizes, left, strict=True))
    assert len(plan_for(ListedSource(listing, page_rows=100), None, unit_images=400, slots=1000).units) == 32
    assert len(plan_for(ListedSource(listing, page_rows=100), None, unit_images=10, slots=1).units) == 100


def test_a_large_backlog_comes_in_pieces_and_parts_may_be_rewritten_by_each(tmp_path, monkeypatch) -> None:
    """Runs of several batches on local disk, ranges of names, and positions in a part that an earlier piece rewrote."""
    monkeypatch.setattr("tlray.lake.table.row_identities.external_sort.RUN_ROWS", 7)
    monkeypatch.setattr("tlray.lake.table.row_identities.external_sort.BATCH_ROWS", 3)
    monkeypatch.setattr("tlray.extraction.plan.compare.STEP_ROWS", 4)
    table = Table.create(f"file://{tmp_path}/t", make_recipe_file())
    names = [f"s3://b/{number:03d}" for number in range(100)]
    random.Random(0).shuffle(names)  # a manifest's order
    listing: Listing = dict.fromkeys(names, ("1", "l"))
    for number, etag in enumerate("122"):
        listing = {name: (etag if index % 3 else "1", "l") for index, name in enumerate(listing)}
        source = ListedSource(listing, repeat=True)
        committer = Committer(table, f"run{number}")
        counts: Counter[str] = Counter()
        with tempfile.TemporaryDirectory() as scratch:
            report = ListingReport()
            pieces = list(find_backlogs(source, table, Path(scratch), budget=10, memory_bytes=1500, report=report))
            assert report.left_out == {"repeated": 50}
            assert list(Path(scratch).iterdir())
            for backlog in pieces:
                counts.update(backlog.counts)
                plan = backlog.cut(unit_images=25, slots=1)
                committer.start(plan.groups)
                for piece in pieces_of(table, plan, f"run{number}", set()):
                    committer.add(piece)
            committer.flush(now=True)
        left = [piece.left for piece in pieces]
        assert left == sorted(left, reverse=True) and left[-1] == 0
        assert (counts["new"], counts["changed"], counts["unchanged"]) == [(100, 0, 0), (0, 66, 34), (0, 0, 100)][number]
        assert len(pieces) > (1 if number < 2 else 0)
        assert_table_is(table, listing)


def test_a_policy_keeps_what_is_gone_or_changed(tmp_path) -> None:
    table = Table.create(f"file://{tmp_path}/t", make_recipe_file())
    carry_out(table, plan_for(ListedSource({"a": ("1", "l"), "b": ("1", "l")}), table), "one")
    source = ListedSource({"a": ("2", "l"), "c": ("1", "l")})
    for deleted, changed in product(("follow", "keep"), repeat=2):
        [backlog] = backlogs_for(source, table, policy=PolicyConfig(deleted=deleted, changed=changed))
        found = tuple(backlog.counts[name] for name in ("new", "changed", "deleted", "unchanged"))
        assert found == (1, int(changed == "follow"), int(deleted == "follow"), int(changed == "keep"))


def test_a_source_without_labels_erases_none(tmp_path) -> None:
    table = Table.create(f"file://{tmp_path}/t", make_recipe_file())
    carry_out(table, plan_for(ListedSource({"a": ("1", "cat"), "b": ("1", "dog"), "c": ("1", "cow")}), table), "one", {"c"})
    source = ListedSource({"b": ("2", None), "a": ("1", None), "c": ("1", None), "d": ("1", None)})
    assert counts_for(source, table, retry_codes=["corrupt"]) == (1, 2, 0, 1)
    carry_out(table, plan_for(source, table, ["corrupt"]), "two")
    assert_table_is(table, {"a": ("1", "cat"), "b": ("2", "dog"), "c": ("1", "cow"), "d": ("1", None)})
