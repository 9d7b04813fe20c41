"""Parts that reach their final size while a run goes on: what readers see at each version, by Polars and the log itself."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from tests.factories import make_recipe_file, make_rows, read_with_polars
from tlray.errors import StorageError
from tlray.extraction.commit import joins
from tlray.extraction.commit.committer import Committer
from tlray.extraction.plan.plan import Group
from tlray.extraction.worker.pieces import Piece, WrittenParts
from tlray.lake.table import maintenance, rewrite
from tlray.lake.table.parts import Part, write_part
from tlray.lake.table.rewrite import Submit, in_this_thread, join_parts
from tlray.lake.table.table import Table

ROWS_OF_UNIT, WHOLE = 4, 20


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    """Whose parts are whole from so few rows on, five units."""
    monkeypatch.setattr(rewrite, "PART_ROWS", WHOLE)
    monkeypatch.setattr(joins, "MOST_SMALL_PARTS", 8)
    return Table.create(f"file://{tmp_path}/t", make_recipe_file())


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def run(
    table: Table, units: int, *, seconds_each: float, submit: Submit = in_this_thread, finish: bool = True
) -> tuple[Committer, list[int]]:
    """A first backfill, each unit one row of which failed; also the live parts after each unit."""
    clock = Clock()
    committer, live = Committer(table, "run1", submit=submit, clock=clock), []
    committer.start([Group((unit,)) for unit in range(units)])
    for unit in range(units):
        clock.seconds += seconds_each
        committer.add(Piece(unit, 0, True, WrittenParts(written(table, unit), {}), {}))
        committer.flush()
        live.append(len(table.parts()))
    if finish:
        committer.finish()
    return committer, live


def written(table: Table, unit: int) -> tuple[Part, Part]:
    items = [(f"s3://b/{unit:04d}/{number}.jpg", "1", None) for number in range(ROWS_OF_UNIT + 1)]
    ok = write_part(table.uri, make_rows(items[:-1]), status="ok", stem="run1", recipe_id="r")
    failed = write_part(table.uri, make_rows(items[-1:], "corrupt"), status="failed", stem="run1", recipe_id="r")
    return ok, failed


def actions(table: Table, kind: str) -> list[dict[str, Any]]:
    """Of all entries of the log, in order, as they are written there."""
    entries = sorted(Path(table.uri.removeprefix("file://"), "_delta_log").glob("*.json"))
    lines = [json.loads(line) for entry in entries for line in entry.read_text().splitlines()]
    return [line[kind] for line in lines if kind in line]


def files(table: Table) -> set[str]:
    root = Path(table.uri.removeprefix("file://"))
    return {str(path.relative_to(root)) for path in root.glob("status=*/*.parquet")}


def assert_complete(table: Table, units: int) -> None:
    frame = read_with_polars(table)
    names = [f"s3://b/{unit:04d}/{number}.jpg" for unit in range(units) for number in range(ROWS_OF_UNIT + 1)]
    assert frame["uri"].to_list() == names
    assert frame["status"].value_counts().sort("status")["count"].to_list() == [units, units * ROWS_OF_UNIT]


def test_where_units_come_quickly_small_parts_are_never_seen(table: Table) -> None:
    _, live = run(table, 100, seconds_each=0.5)
    assert_complete(table, 100)
    added = [each["path"] for each in actions(table, "add") if "status=ok" in each["path"]]
    assert len(added) == 100 * ROWS_OF_UNIT / WHOLE and all("joined" in path for path in added)
    assert files(table) == {part.path for part in table.parts()} | {each["path"] for each in actions(table, "remove")}
    assert max(live) <= 100 * (ROWS_OF_UNIT + 1) / WHOLE + 2 * joins.MOST_SMALL_PARTS


def test_where_they_come_slowly_small_parts_are_exchanged_for_whole_ones(table: Table) -> None:
    _, live = run(table, 100, seconds_each=10)
    assert_complete(table, 100)
    sizes = Counter(part.rows for part in table.parts("ok"))
    assert sizes == {WHOLE: 100 * ROWS_OF_UNIT / WHOLE}
    for number, parts in enumerate(live, start=1):
        assert parts <= number * (ROWS_OF_UNIT + 1) / WHOLE + 2 * joins.MOST_SMALL_PARTS
    changes = [each["dataChange"] for each in actions(table, "add") if "joined" in each["path"]]
    assert changes and not any(changes), "the same rows, elsewhere"
    frames = [pl.scan_delta(table.uri.removeprefix("file://"), version=version) for version in range(1, table.version + 1)]
    heights = [frame.select(pl.len(), pl.col("uri").n_unique().alias("n")).collect().row(0) for frame in frames]
    assert all(rows == unique for rows, unique in heights) and [rows for rows, _ in heights] == sorted(r for r, _ in heights)


def test_joins_that_are_slow_hold_nothing_back_for_ever(table: Table) -> None:
    """The end of a run that fails: what is being joined is committed as it is, and nothing twice."""
    committer, live = run(table, 12, seconds_each=0.5, submit=lambda *_, **__: Future(), finish=False)
    assert max(live) == 0
    committer.flush(now=True)
    assert not committer.flush(now=True), "nothing is left"
    assert_complete(table, 12)


@pytest.mark.parametrize("seconds_each", [0.5, 10])
def test_a_join_that_fails_leaves_the_small_parts(seconds_each: float, table: Table, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tlray")
    calls = count()

    def often_failing(function: Callable[..., Any], *arguments: Any, **options: Any) -> "Future[Any]":
        if next(calls) % 3:
            return in_this_thread(function, *arguments, **options)
        future: Future[Any] = Future()
        future.set_exception(StorageError("a worker was lost"))
        return future

    run(table, 40, seconds_each=seconds_each, submit=often_failing)
    assert_complete(table, 40)
    assert "stay as they are, as joining them failed: a worker was lost" in caplog.text


def test_workers_join_while_the_run_goes_on(table: Table) -> None:
    with ThreadPoolExecutor(2) as threads:
        run(table, 100, seconds_each=0.5, submit=threads.submit)
    assert_complete(table, 100)
    assert maintenance.vacuum(table, retention_hours=0, delete=False)["paths"] == sorted(
        files(table) - {part.path for part in table.parts()}
    )


def test_a_joined_part_is_its_rows_in_order_in_bounded_row_groups(
    table: Table, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tlray.lake.table.parts.ROW_GROUP_ROWS", 7)
    parts: Sequence[Part] = [written(table, unit)[0] for unit in range(9)]
    joined = join_parts(table.uri, parts, stem="joined", recipe_id="r")
    root = tmp_path / "t"
    expected = pl.concat([pl.read_parquet(root / part.path) for part in parts])
    assert pl.read_parquet(root / joined.path).equals(expected) and joined.rows == len(expected)
    metadata = pq.read_metadata(root / joined.path)
    assert [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)] == [7, 7, 7, 7, 7, 1]
    assert joined.size_bytes == (root / joined.path).stat().st_size
