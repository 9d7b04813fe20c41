"""Any sequence of changes, runs, kills, lost answers and second drivers: after the next complete run the table is the source.

A run here is a real one but for its workers: the real lease, comparison, parts, commits and log, with vectors that are drawn
from the image's name and version. A killed driver is one whose every step towards the store raises from some step on, so that
it cannot even let go of its lease. Versions are read back with delta-rs and plain pyarrow.
"""

import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Lock
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.extraction.plan.test_plan import ListedSource, Listing, pieces_of
from tests.factories import make_recipe_file, vector_of
from tlray.errors import ConcurrentWriteError, TableLockedError
from tlray.extraction.commit.committer import Committer
from tlray.extraction.plan.compare import find_backlogs
from tlray.lake.place import lease as lease_module
from tlray.lake.place.lease import Lease, hold
from tlray.lake.storage.local import LocalStore
from tlray.lake.table import maintenance
from tlray.lake.table.log.delta_log import DeltaLog
from tlray.lake.table.parts import round_to_half, write_part
from tlray.lake.table.table import Change as TableChange
from tlray.lake.table.table import Table

Change = tuple[str, str, str]
"""replace (or add), delete or corrupt; the image; its label."""

Row = tuple[str, str, str | None, str | None, tuple[float, ...] | None]
"""etag, status, label, error, vector of an image."""


class Killed(BaseException):
    """kill -9 of a driver."""


class Clock:
    """A clock that goes on when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.while_asleep: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.while_asleep()


class NoHeart:
    """In the place of the thread that renews a lease: it would do so by the machine's clock, also for a driver that hangs."""

    def __init__(self, **_: object) -> None:
        pass

    def start(self) -> None:
        pass

    join = start


class Faults:
    """Counts the steps towards the store, and lets the driver die or an answer get lost at one of them."""

    def __init__(self) -> None:
        self.steps = 0
        self.kill_at: int | None = None
        self.lose_at: int | None = None

    def step(self) -> bool:
        """Whether the answer of this step is to be lost.

        Raises:
            Killed: from the chosen step on.
        """
        self.steps += 1
        if self.kill_at is not None and self.steps >= self.kill_at:
            raise Killed
        return self.steps == self.lose_at

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        write, delete, commit = LocalStore.write, LocalStore.delete, DeltaLog._try_commit

        def write_with_faults(store: LocalStore, *arguments: Any, **options: Any) -> bool:
            self.step()
            done = write(store, *arguments, **options)
            # The request is repeated after a lost answer, and finds what it wrote itself.
            return write(store, *arguments, **options) if self.step() else done

        def delete_with_faults(store: LocalStore, uris: Any) -> None:
            self.step()
            delete(store, uris)
            self.step()

        def commit_with_faults(table: DeltaLog, *arguments: Any) -> Exception | None:
            if self.step():
                return OSError("503 before anything was written")
            failure = commit(table, *arguments)
            return OSError("the answer is lost") if self.step() else failure

        patch.setattr(LocalStore, "write", write_with_faults)
        patch.setattr(LocalStore, "delete", delete_with_faults)
        patch.setattr(DeltaLog, "_try_commit", commit_with_faults)


URIS = st.sampled_from([f"s3://b/{folder}/{name}.jpg" for folder in "xy" for name in "abcdefg"])
LABELS = st.sampled_from(["cat", "dog"])
STEPS = st.integers(1, 60)
PAUSES = st.integers(0, 5)
KINDS = st.sampled_from(["replace", "replace", "delete", "corrupt"])
CHANGES = st.lists(st.tuples(KINDS, URIS, LABELS), min_size=1, max_size=8)


@settings(max_examples=16, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck))
class Backfill(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.uri = f"file://{self.folder.name}/t"
        self.patch = pytest.MonkeyPatch()
        self.clock, self.faults = Clock(), Faults()
        self.patch.setattr(lease_module, "time", self.clock)
        self.patch.setattr(lease_module, "threading", SimpleNamespace(Event=Event, Lock=Lock, Thread=NoHeart))
        self.patch.setattr("tlray.lake.table.log.delta_log.COMMIT_FIRST_WAIT_SECONDS", 0.0)
        self.patch.setattr("tlray.lake.table.rewrite.PART_ROWS", 3)  # so that runs join what they write
        self.faults.patch(self.patch)
        self.listing: Listing = {}
        self.broken: set[str] = set()
        self.versions: list[dict[str, Row]] = []
        self.count = 0

    def teardown(self) -> None:
        self.patch.undo()
        self.folder.cleanup()

    @initialize(listing=st.dictionaries(URIS, st.tuples(st.just("0"), LABELS), min_size=6))
    def begin(self, listing: Listing) -> None:
        self.listing = dict(listing)
        Table.create(self.uri, make_recipe_file())
        self.run()

    def change(self, changes: list[Change]) -> None:
        for what, uri, label in changes:
            self.count += 1
            self.broken.discard(uri)
            if what == "delete":
                if len(self.listing) > 1:
                    self.listing.pop(uri, None)
                continue
            self.listing[uri] = (str(self.count), label)
            if what == "corrupt":
                self.broken.add(uri)

    @rule(changes=CHANGES)
    def run_changed(self, changes: list[Change]) -> None:
        self.change(changes)
        self.run()

    def run(self) -> None:
        for _ in self.drive():
            pass
        self.check_versions()
        assert self.versions[-1] == self.expected()

    @rule(step=STEPS, changes=CHANGES)
    def run_killed(self, step: int, changes: list[Change]) -> None:
        self.change(changes)
        self.with_faults(kill_at=step)

    @rule(step=STEPS, changes=CHANGES)
    def run_with_a_lost_answer(self, step: int, changes: list[Change]) -> None:
        self.change(changes)
        self.with_faults(lose_at=step)
        assert self.versions[-1] == self.expected()

    @rule(step=STEPS)
    def optimize_killed(self, step: int) -> None:
        self.faults.steps, self.faults.kill_at = 0, step
        with contextlib.suppress(Killed):
            maintenance.optimize(Table.open(self.uri))
        self.faults.kill_at = None
        self.check_versions()

    @rule(pause=PAUSES, changes=CHANGES, more=CHANGES, guarded=st.booleans())
    def second_driver_takes_over(self, pause: int, changes: list[Change], more: list[Change], guarded: bool) -> None:
        """One that hangs for longer than its lease; unguarded, it wakes up between the look at its lease and the commit."""
        self.change(changes)
        hanging = self.drive(guarded=guarded)
        ended = not any(number == pause for number, _ in enumerate(hanging))
        self.check_versions()
        if ended:
            return
        self.change(more)
        self.run()
        with contextlib.suppress(ConcurrentWriteError):  # none where it had nothing left to commit
            for _ in hanging:
                pass
        self.check_versions()
        assert self.versions[-1] == self.expected()

    @rule(pause=PAUSES, changes=CHANGES)
    def second_driver_is_refused(self, pause: int, changes: list[Change]) -> None:
        self.change(changes)
        first = self.drive()
        holder: Lease | None = None
        for number, lease in enumerate(first):
            holder = lease
            if number == pause:
                self.clock.while_asleep = lease.heartbeat
                with pytest.raises(TableLockedError, match="is held by run"):
                    next(self.drive())
        self.clock.while_asleep = lambda: None
        assert holder is not None
        self.check_versions()
        assert self.versions[-1] == self.expected()

    def drive(self, *, guarded: bool = True) -> Iterator[Lease]:
        """A run, with a rest after each step of the driver."""
        self.count += 1
        run_id, source, broken = f"run{self.count}", ListedSource(dict(self.listing)), set(self.broken)
        with hold(self.uri, run_id) as lease, tempfile.TemporaryDirectory() as scratch:
            table = Table.open(self.uri)
            yield lease
            committer = Committer(table, run_id, guard=lease.check if guarded else lambda: None)
            for backlog in find_backlogs(source, table, Path(scratch), budget=4, memory_bytes=100):
                plan = backlog.cut(unit_images=2, slots=1)
                committer.start(plan.groups)
                for piece in pieces_of(table, plan, run_id, broken):
                    yield lease
                    committer.add(piece)
                    if piece.unit % 2:
                        committer.flush(now=self.count % 2 == 0)
            committer.finish()

    def with_faults(self, **at: int) -> None:
        self.faults.steps = 0
        self.faults.kill_at, self.faults.lose_at = at.get("kill_at"), at.get("lose_at")
        with contextlib.suppress(Killed):
            for _ in self.drive():
                pass
        self.faults.kill_at = self.faults.lose_at = None
        self.check_versions()

    def expected(self, listing: Listing | None = None) -> dict[str, Row]:
        rows: dict[str, Row] = {}
        for uri, (etag, label) in (self.listing if listing is None else listing).items():
            if uri in self.broken:
                rows[uri] = (etag, "failed", label, "corrupt", None)
            else:
                rows[uri] = (etag, "ok", label, None, tuple(round_to_half(vector_of(uri, etag)).tolist()))
        return rows

    def check_versions(self) -> None:
        """Old versions read as they did; in new ones each image is once, and those that were there throughout are there."""
        newest = DeltaTable(self.uri.removeprefix("file://")).version()
        old = self.versions[-1] if self.versions else {}
        for version in range(len(self.versions), newest + 1):
            self.versions.append(self.read(version))
            assert old.keys() & self.listing.keys() <= self.versions[-1].keys()
        for version in {0, newest // 3, newest // 2, newest - 1} & set(range(newest)):
            assert self.read(version) == self.versions[version]

    def read(self, version: int) -> dict[str, Row]:
        paths = DeltaTable(self.uri.removeprefix("file://"), version=version).file_uris()
        tables = [(pq.ParquetFile(path).read(), "ok" if "status=ok" in path else "failed") for path in paths]
        rows = [(row, status) for table, status in tables for row in table.to_pylist()]
        assert max(Counter(row["uri"] for row, _ in rows).values(), default=1) == 1
        return {
            row["uri"]: (
                row["etag"],
                status,
                row["label"],
                row["error"],
                None if row["embedding"] is None else tuple(row["embedding"]),
            )
            for row, status in rows
        }


TestBackfill = Backfill.TestCase


def test_this_test_would_see_an_image_twice() -> None:
    machine = Backfill()
    machine.begin({"s3://b/x/a.jpg": ("0", "cat")})
    table = Table.open(machine.uri)
    [part] = table.parts()
    rows = pq.ParquetFile(f"{machine.folder.name}/t/{part.path}").read()
    again = write_part(table.uri, rows, status="ok", stem="again", recipe_id="r")
    table.commit(TableChange([again]), app_id="x", sequence=1, info={})
    with pytest.raises(AssertionError):
        machine.check_versions()
    machine.teardown()
