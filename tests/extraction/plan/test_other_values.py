"""Rows that get other values in columns that travel: exactly one live row an image, whatever dies and wherever."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from tests.factories import make_recipe_file, make_rows, vector_of
from tlray.columns.column import Column
from tlray.config import PolicyConfig
from tlray.extraction.commit.committer import Committer
from tlray.extraction.plan.compare import find_backlogs
from tlray.extraction.worker.pieces import Piece, WrittenParts
from tlray.lake.source.listing.report import ListingReport
from tlray.lake.source.source import PAGE_SCHEMA
from tlray.lake.storage.local import LocalStore
from tlray.lake.table.parts import Change, round_to_half, write_part
from tlray.lake.table.table import Table

SITE, TAGS = Column(name="site", type="text"), Column(name="tags", type="text[]")
Values = tuple[str | None, list[str | None] | None]


class Killed(BaseException):
    """kill -9 of a driver."""


@dataclass
class ValuedSource:
    """Images, each with the version of its bytes and its values."""

    listing: dict[str, tuple[str, Values]]
    kind: str = "images"
    gives_labels: bool = False
    page_schema = pa.schema([*PAGE_SCHEMA, SITE.field, TAGS.field])

    def pages(self, report: ListingReport | None = None) -> Iterator[pa.Table]:
        rows = [
            {"uri": uri, "etag": etag, "size_bytes": 5, "site": site, "tags": tags}
            for uri, (etag, (site, tags)) in self.listing.items()
        ]
        yield pa.Table.from_pylist(rows, self.page_schema)

    def covers(self, uris: pa.Array) -> np.ndarray:
        return np.ones(len(uris), bool)


def rows_of(items: list[dict[str, Any]]) -> pa.Table:
    rows = make_rows([(item["uri"], item["etag"], item["label"]) for item in items])
    for column in (SITE, TAGS):
        rows = rows.append_column(column.field, pa.array([item[column.name] for item in items], column.field.type))
    return rows


def run(table: Table, source: ValuedSource, run_id: str) -> list[str]:
    """A run, but for its workers and its lease; the images that it embedded."""
    embedded: list[str] = []
    clock = count()
    committer = Committer(table, run_id, clock=lambda: 10.0 * next(clock), fields=[SITE.field, TAGS.field])
    with tempfile.TemporaryDirectory() as scratch:
        for backlog in find_backlogs(source, Table.open(table.uri), Path(scratch), columns=(SITE, TAGS)):
            plan = backlog.cut(unit_images=4, slots=1)
            committer.start(plan.groups)
            for unit in plan.units:
                items = unit.items.to_pylist()
                embedded += [item["uri"] for item in items]
                part = write_part(table.uri, rows_of(items), status="ok", stem=run_id, recipe_id="r")
                committer.add(Piece(unit.index, 0, True, WrittenParts((part,), {}), {}))
                committer.flush()
        committer.finish()
    return embedded


def check(table_path: Path, wanted: dict[str, tuple[str, Values]], version: int | None = None) -> None:
    frame = pl.scan_delta(str(table_path), version=version).collect()
    found = {row["uri"]: (row["etag"], (row["site"], row["tags"])) for row in frame.to_dicts()}
    assert len(found) == len(frame) and found == wanted
    for row in frame.to_dicts():
        assert np.array_equal(row["embedding"], round_to_half(vector_of(row["uri"], row["etag"])))


def test_killed_at_any_step_the_next_run_ends_where_one_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first: dict[str, tuple[str, Values]] = {f"s3://b/{at:02}": ("1", ("A", ["x"])) for at in range(48)}
    table = Table.create(f"file://{tmp_path}/begun", make_recipe_file())
    for start in range(0, 48, 8):  # before columns travelled
        items = [(uri, etag, None) for uri, (etag, _) in list(first.items())[start : start + 8]]
        part = write_part(table.uri, make_rows(items), status="ok", stem="old", recipe_id="r")
        table.commit(Change([part]), app_id="old", sequence=start + 1, info={})
    names = list(first)
    wanted = {
        uri: (etag, (f"S{at % 3}" if at % 5 else None, [uri[-1], None] if at % 2 else []))
        for at, (uri, (etag, _)) in enumerate(first.items())
    }
    wanted[names[3]] = ("2", ("replaced", None))
    wanted[names[40]] = ("2", ("replaced", ["y"]))
    wanted["s3://b/new"] = ("1", ("new", []))
    del wanted[names[9]], wanted[names[10]]
    source = ValuedSource(wanted)
    steps, kill_at = count(), [10**9]

    def step() -> None:
        if next(steps) >= kill_at[0]:
            raise Killed

    write = LocalStore.write
    monkeypatch.setattr("tlray.extraction.commit.committer.REWRITTEN_BYTES", 1)  # one part a commit

    def write_or_die(store: LocalStore, *arguments: Any, **options: Any) -> bool:
        step()
        done = write(store, *arguments, **options)
        step()
        return done

    monkeypatch.setattr(LocalStore, "write", write_or_die)
    shutil.copytree(tmp_path / "begun", tmp_path / "whole")
    whole = Table.open(f"file://{tmp_path}/whole")
    assert sorted(run(whole, source, "whole")) == sorted([names[3], names[40], "s3://b/new"])
    check(tmp_path / "whole", wanted)
    assert whole.version - table.version > 3  # several commits
    number_of_steps = next(steps)
    assert number_of_steps > 15
    for dies_at in range(number_of_steps):
        folder = tmp_path / f"killed-{dies_at}"
        shutil.copytree(tmp_path / "begun", folder)
        steps, kill_at[0] = count(), dies_at
        with pytest.raises(Killed):
            run(Table.open(f"file://{folder}"), source, "killed")
        kill_at[0] = 10**9
        left = pl.scan_delta(str(folder)).collect()
        assert left["uri"].n_unique() == len(left) >= 46
        again = run(Table.open(f"file://{folder}"), source, "again")
        assert set(again) <= {names[3], names[40], "s3://b/new"}
        check(folder, wanted)
        assert run(Table.open(f"file://{folder}"), source, "third") == []
        shutil.rmtree(folder)


def test_a_part_is_rewritten_again_by_a_later_backlog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one part in two backlogs: the second finds them where the first has moved them to."""
    monkeypatch.setattr("tlray.lake.table.row_identities.external_sort.RUN_ROWS", 7)
    monkeypatch.setattr("tlray.lake.table.row_identities.external_sort.BATCH_ROWS", 3)
    wanted: dict[str, tuple[str, Values]] = {f"s3://b/{at:02}": ("1", (f"S{at}", None)) for at in range(40)}
    table = Table.create(f"file://{tmp_path}/t", make_recipe_file())
    run(table, ValuedSource(wanted), "one")
    assert len(table.parts()) > 1
    changed = {
        uri: (etag, (f"other {at}", [f"{at}"]) if at % 3 else values) for at, (uri, (etag, values)) in enumerate(wanted.items())
    }
    del changed["s3://b/00"], changed["s3://b/21"]
    with tempfile.TemporaryDirectory() as scratch:
        committer = Committer(table, "two", fields=[SITE.field, TAGS.field])
        backlogs = find_backlogs(ValuedSource(changed), Table.open(table.uri), Path(scratch), columns=(SITE, TAGS), budget=7)
        counts = []
        for backlog in backlogs:
            counts.append(backlog.counts)
            committer.start(backlog.cut(unit_images=4, slots=1).groups)
        committer.finish()
    assert len(counts) > 3 and sum(one["rewritten"] for one in counts) == 26 and sum(one["deleted"] for one in counts) == 2
    check(tmp_path / "t", changed)


def test_values_are_compared_only_where_changes_are_followed(tmp_path: Path) -> None:
    table = Table.create(f"file://{tmp_path}/t", make_recipe_file())
    run(table, ValuedSource({"s3://b/0": ("1", ("A", None))}), "one")
    with tempfile.TemporaryDirectory() as scratch:
        source = ValuedSource({"s3://b/0": ("1", ("B", None))})
        policy = PolicyConfig(changed="keep")
        (backlog,) = find_backlogs(source, table, Path(scratch), columns=(SITE, TAGS), policy=policy)
    assert backlog.is_empty and backlog.counts["unchanged"] == 1
