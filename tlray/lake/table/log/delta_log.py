"""The log of a Delta table: asked, and written to exactly once."""

import contextlib
import time
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable

from tlray.errors import AccessError, ConcurrentWriteError, ObjectNotFoundError, StorageError, TlrayError
from tlray.lake.place.occupant import LOG
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import join
from tlray.lake.table.log.delta import delta_errors, one_line, open_delta
from tlray.lake.table.log.entry import check_plain, entry_uri, log_entry, metadata_with
from tlray.lake.table.parts import Change, Part

HISTORY_COMMITS = 20
"""How far back `last_run` looks: compaction commits after a run."""

CHECKPOINT_COMMITS = 10
"""Who opens a table reads the last checkpoint and the commits since, at most so many: Delta's own default of a hundred makes
opening slow (`tests.bench.backfill`)."""

CHECKPOINT_SHARE = 0.01
"""The share of a writer's time that its checkpoints may take: one takes longer the more parts there are, and then comes less
often."""

COMMIT_INTERVAL_SECONDS = 5.0
"""Between the commits of a run, or of a joining of small parts: who is killed repeats at most so much finished work, or what is
held back; over S3 a commit takes some tenths of a second."""

COMMIT_ATTEMPTS = 4
COMMIT_FIRST_WAIT_SECONDS = 0.5
"""Doubled after each failed attempt; within each, the store itself tries for as long as its restart takes."""


class DeltaLog:
    """The log of a table, seen at one version of it.

    Attributes:
        uri: of the table.
        table_id: Delta's id of the table, drawn when it was made.
        version: that this object sees.
    """

    def __init__(self, uri: str, delta: DeltaTable) -> None:
        self.uri = uri
        self.table_id = str(delta.metadata().id)
        self._last_entry: bytes | None = None  # of our own, where this version is one
        self._move_to(delta)
        self._last_checkpoint, self._next_checkpoint_seconds = self.version, 0.0

    def _move_to(self, delta: DeltaTable | None) -> None:
        if delta is None:
            raise StorageError(f"the log of {self.uri} is gone; restore it, or extract to a new table")
        if str(delta.metadata().id) != self.table_id:
            raise self._is_gone()
        self._delta, self.version = delta, int(delta.version())
        self._added: list[pa.Field] = []
        self._schema: pa.Schema | None = None

    def _seen(self) -> DeltaTable:
        """What delta-rs knows of this version: after commits of our own it is read again only when somebody asks."""
        if self._delta.version() != self.version:
            self._move_to(open_delta(self.uri, self.version))
        return self._delta

    @property
    def schema(self) -> pa.Schema:
        """Names and types of all columns, as other engines see them."""
        seen = self._seen()
        if self._schema is None:
            self._schema = pa.schema(seen.schema().to_arrow())
        return self._schema

    def refresh(self) -> None:
        """Move on to the newest version.

        Raises:
            StorageError: the log is gone.
            ConcurrentWriteError: another table is there now.
        """
        self._last_entry = None
        self._move_to(open_delta(self.uri, None))

    def parts(self) -> list[Part]:
        """List the parts that this version consists of, in the log's order."""
        actions = pa.table(self._seen().get_add_actions(flatten=True)).to_pylist()
        return [
            Part(
                path=action["path"],
                status=action["partition.status"],
                rows=action["num_records"],
                size_bytes=action["size_bytes"],
            )
            for action in actions
        ]

    def unreferenced(self, retention_hours: int) -> list[str]:
        """Paths of parts that no version within the retention needs: replaced, or written and never committed, before it.

        delta-rs finds them; files that are not parts (recipe.json) are none of its business.

        Raises:
            StorageError: they cannot be listed.
        """
        with delta_errors(f"cannot list the files of {self.uri}"):
            paths = self._seen().vacuum(retention_hours, dry_run=True, enforce_retention_duration=False, full=True)
        return sorted(path for path in paths if path.startswith("status=") and path.endswith(".parquet"))

    def clean_log(self) -> int:
        """Write a checkpoint of this version, and delete what it and time have made of no use.

        Those are the log's entries before it that are older than the table's `delta.logRetentionDuration` (30 days, if nobody
        set it); versions that they make can no longer be opened.

        Returns:
            Files that were deleted.

        Raises:
            StorageError: the checkpoint cannot be written, or the entries cannot be deleted.
        """
        store, folder = open_store(self.uri), join(self.uri, LOG)
        with delta_errors(f"cannot clean the log of {self.uri}"):
            self._seen().create_checkpoint()
            before = sum(map(len, store.list(folder)))
            self._seen().cleanup_metadata()
        return before - sum(map(len, store.list(folder)))

    def committed(self, app_id: str) -> int | None:
        """Number of the last transaction of an application that this version holds; None where it holds none."""
        return self._seen().transaction_version(app_id)

    def history(self, commits: int = HISTORY_COMMITS) -> list[dict[str, Any]]:
        """What the log says of the last commits, the newest first; `tlray` is what a run said of itself."""
        with delta_errors(f"cannot read the log of {self.uri}"):
            return self._seen().history(commits)

    def last_run(self) -> dict[str, Any] | None:
        """What the log says of the last run that embedded something; None where it is further back than HISTORY_COMMITS."""
        for commit in self.history():
            said = commit.get("tlray")
            if isinstance(said, dict) and "bottleneck" in said:
                return said
        return None

    def commit(self, change: Change, *, app_id: str, sequence: int, info: dict[str, Any]) -> None:
        """Commit a change to the log, exactly once whatever fails on the way, at a cost that does not grow with the table.

        A commit that came between may have added the same images, so nothing is ever put on top of one. After any failure the
        log decides: the transaction is there (the answer was lost), or the table has not moved (try again), or it has
        (somebody else's commit: the caller decides).

        Args:
            change: parts to add and to remove.
            app_id: identifies the writer's run.
            sequence: number of this commit within the run, from 1 up.
            info: kept in the log beside the commit.

        Raises:
            ConcurrentWriteError: the table moved on under another writer, or was removed or replaced.
            StorageError: the store failed for longer than all attempts.
            TableError: another program has switched on features of Delta that tlray does not write.
        """
        check_plain(self._delta, self.uri)
        known = {field.name for field in (*self._delta.schema().fields, *self._added)} if change.fields else set()
        new = [field for field in change.fields if field.name not in known]
        metadata = metadata_with(self._delta, [*self._added, *new]) if new else None
        now_ms = time.time_ns() // 1_000_000
        entry = log_entry(change, app_id=app_id, sequence=sequence, info=info, time_ms=now_ms, metadata=metadata)
        wait_seconds = COMMIT_FIRST_WAIT_SECONDS
        for attempt in range(COMMIT_ATTEMPTS):
            before = self.version
            failure = self._try_commit(entry)
            if failure is None:
                self._added += new
                self._checkpoint_if_due()
                return
            if attempt:
                time.sleep(wait_seconds)
                wait_seconds *= 2
            try:
                self.refresh()
            except (AccessError, StorageError):  # credentials may be renewed by the next attempt
                continue
            if (self.committed(app_id) or 0) >= sequence:
                return
            if self.version != before:
                raise ConcurrentWriteError(
                    f"another writer committed version {self.version} of {self.uri} during this run, on top of {before}; "
                    "nothing of theirs or of our earlier commits is lost: run the same command again when theirs has ended"
                )
        raise StorageError(
            f"cannot commit to {self.uri} after {COMMIT_ATTEMPTS} attempts: {one_line(failure)}; "
            "what was committed before is safe: run the same command again"
        )

    def _try_commit(self, entry: bytes) -> Exception | None:
        uri, store = entry_uri(self.uri, self.version + 1), open_store(self.uri)
        try:
            self._check_is_there()
            # After a lost answer and a repeated request, the entry that is there already is our own.
            if not store.write(uri, entry, if_absent=True) and store.read(uri).data != entry:
                return ConcurrentWriteError(f"{uri} is somebody else's")
        except (AccessError, StorageError) as error:  # credentials may be renewed by the next attempt
            return error
        self.version += 1
        self._last_entry = entry
        return None

    def _check_is_there(self) -> None:
        """Make sure that there is something to commit on top of: an entry in an empty log would be seen by nobody.

        Raises:
            ConcurrentWriteError: the table was removed, or replaced by another one.
        """
        if self._last_entry is None:
            delta = open_delta(self.uri, None)
            is_there = delta is not None and str(delta.metadata().id) == self.table_id
        else:
            uri = entry_uri(self.uri, self.version)
            try:
                is_there = open_store(uri).read(uri).data == self._last_entry
            except ObjectNotFoundError:
                is_there = False
        if not is_there:
            raise self._is_gone()

    def _is_gone(self) -> ConcurrentWriteError:
        return ConcurrentWriteError(
            f"{self.uri} was removed or replaced while it was in use, and what was committed to it is gone too; run the same "
            "command again, which begins anew"
        )

    def _checkpoint_if_due(self) -> None:
        is_due = self.version % CHECKPOINT_COMMITS == 0
        if is_due and time.monotonic() >= self._next_checkpoint_seconds:
            self._checkpoint()

    def _checkpoint(self) -> None:
        began = time.monotonic()
        # A commit is whole without one, and the next one that is due stands for both.
        with contextlib.suppress(TlrayError), delta_errors(f"no checkpoint of {self.uri}"):
            self._seen().create_checkpoint()
            self._last_checkpoint = self.version
        now = time.monotonic()
        self._next_checkpoint_seconds = now + (now - began) / CHECKPOINT_SHARE

    def leave_checkpoint(self) -> None:
        """At a run's end: a checkpoint if CHECKPOINT_COMMITS or more came since the last, so that readers open it quickly."""
        if self.version - self._last_checkpoint >= CHECKPOINT_COMMITS:
            self._checkpoint()
