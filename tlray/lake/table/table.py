"""The table of embeddings: a Delta table, its recipe, and commits that happen exactly once."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import RemoveAction, Transaction

from tlray.errors import ConcurrentWriteError, ObjectNotFoundError, StorageError, TableError
from tlray.lake.storage.open import delta_environment, delta_options, open_store
from tlray.lake.storage.uri import join, to_path
from tlray.lake.table.alias import read_alias
from tlray.lake.table.delta_log import delta_errors, delta_uri, one_line, open_delta
from tlray.lake.table.parts import READ_THREADS, Change, Part, read_part, table_schema
from tlray.lake.table.place import occupant_of, require_new_table_place
from tlray.lake.table.recipe_check import check_recipe, held_in
from tlray.recipe import RecipeFile

RECIPE_NAME = "recipe.json"
HISTORY_COMMITS = 20
"""How far back `last_run` looks: compaction commits after a run."""

CHECKPOINT_COMMITS = 10
"""Who opens a table reads the last checkpoint and the commits since, at most so many: Delta's own default of a hundred makes
opening slow (`tests.bench.backfill`)."""

COMMIT_ATTEMPTS = 4
COMMIT_FIRST_WAIT_SECONDS = 0.5
"""Doubled after each failed attempt; within each, delta-rs itself tries for as long as a store's restart takes."""


class Table:
    """A table of embeddings or predictions, seen at one version of its log.

    Attributes:
        uri: where it is.
        recipe_file: its recipe, shapes and golden vectors.
    """

    def __init__(self, uri: str, recipe_file: RecipeFile, delta: DeltaTable) -> None:
        self.uri = uri
        self.recipe_file = recipe_file
        self._delta = delta

    @classmethod
    def open(cls, uri: str, version: int | None = None) -> "Table":
        """Open an existing table; all that reads tables comes this way.

        Args:
            uri: of the table, or of an alias of it.
            version: default the newest.

        Raises:
            TableError: there is none, no such version, or it was not made by tlray.
            RecipeMismatchError: its recipe.json is damaged.
            AccessError, StorageError: the store refused or failed.
        """
        alias = read_alias(uri)
        uri = alias[0].table if alias else uri
        delta = open_delta(uri, version)
        if delta is None and version is not None and open_delta(uri, None) is not None:
            raise TableError(f"{uri} has no version {version} any more: its entries of the log were cleaned away")
        if delta is None:
            found = occupant_of(uri)
            there = f", which holds {found.said}" if found else ""
            raise TableError(
                f"no table at {uri}{there}; expected a folder that `tlray extract` made: check the address and the credentials"
            )
        recipe_uri = join(uri, RECIPE_NAME)
        try:
            data = open_store(uri).read(recipe_uri).data
        except ObjectNotFoundError as error:
            raise TableError(
                f"{uri} is a Delta table without {RECIPE_NAME}, so not one of tlray's; name another place"
            ) from error
        return cls(uri, RecipeFile.from_json(data, recipe_uri), delta)

    @classmethod
    def open_or_none(cls, uri: str) -> "Table | None":
        """Like `open`, but None where there is no table yet (a place with a recipe and no log counts as none).

        Raises:
            TableError: an alias is there: who writes names the table itself.
        """
        alias = read_alias(uri)
        if alias is not None:
            raise TableError(f"{uri} is an alias, through which tables are only read; name {alias[0].table} itself")
        return None if open_delta(uri, None) is None else cls.open(uri)

    @classmethod
    def create(cls, uri: str, recipe_file: RecipeFile) -> "Table":
        """Make an empty table, or open the one that another driver made of the same recipe in the meantime.

        The recipe is written first and only if absent, so a table never exists without one.

        Raises:
            RecipeMismatchError: another recipe is there already.
            PlaceTakenError: something else is there.
            TableError: other engines cannot read a table of that name.
        """
        require_new_table_place(uri)
        store, recipe_uri = open_store(uri), join(uri, RECIPE_NAME)
        if not store.write(recipe_uri, recipe_file.to_json(), if_absent=True):
            there = RecipeFile.from_json(store.read(recipe_uri).data, recipe_uri)
            check_recipe(there, recipe_file.recipe, uri, output=recipe_file.output)
        schema = Schema.from_arrow(table_schema(recipe_file))
        if uri.startswith("file://"):
            to_path(uri).mkdir(parents=True, exist_ok=True)
        for attempt in range(COMMIT_ATTEMPTS):
            try:
                options = delta_options(uri)
                with delta_environment(uri):
                    DeltaTable.create(
                        delta_uri(uri),
                        schema,
                        mode="ignore",
                        partition_by=["status"],
                        configuration={"delta.checkpointInterval": str(CHECKPOINT_COMMITS)},
                        description=f"tlray {held_in(recipe_file)} {recipe_file.table_id}",
                        # With retries, several creators at once would all win, one version after the other.
                        commit_properties=CommitProperties(max_commit_retries=0),
                        storage_options=options,
                    )
                break
            except (DeltaError, OSError) as error:
                # Another driver may have created it at the same moment; whether it did is what counts. A connection that broke
                # is not tried again by delta-rs, as the request may have been carried out.
                if open_delta(uri, None) is not None:
                    break
                if attempt == COMMIT_ATTEMPTS - 1:
                    raise StorageError(f"cannot create a table at {uri}: {error}; run the same command again") from error
                time.sleep(COMMIT_FIRST_WAIT_SECONDS * 2**attempt)
        return cls.open(uri)

    @property
    def id(self) -> str:
        """Delta's id of the table, drawn when it was made: another table at the same place has another one."""
        return str(self._delta.metadata().id)

    @property
    def version(self) -> int:
        """Version of the log that this object sees."""
        return self._delta.version()

    @property
    def columns(self) -> list[str]:
        """Names of the columns that hold embeddings."""
        return list(self.recipe_file.embedding_columns)

    def refresh(self) -> None:
        """Move on to the newest version of the log.

        Raises:
            StorageError: the log is gone.
        """
        delta = open_delta(self.uri, None)
        if delta is None:
            raise StorageError(f"the log of {self.uri} is gone; restore it, or extract to a new table")
        self._delta = delta

    def parts(self, status: str | None = None) -> list[Part]:
        """List the parts that this version consists of, in the log's order.

        Args:
            status: `ok` or `failed`, for these alone; None for both.
        """
        actions = pa.table(self._delta.get_add_actions(flatten=True)).to_pylist()
        return [
            Part(
                path=action["path"],
                status=action["partition.status"],
                rows=action["num_records"],
                size_bytes=action["size_bytes"],
            )
            for action in actions
            if status in (None, action["partition.status"])
        ]

    def read(self, columns: Sequence[str] | None = None, *, status: str = "ok") -> pa.Table:
        """Read all rows of one partition into memory.

        Args:
            columns: only these; default all.
            status: `ok` or `failed`.
        """
        paths = [part.path for part in self.parts(status)]
        with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="parts") as threads:
            tables = list(threads.map(lambda path: read_part(self.uri, path, columns), paths))
        if tables:
            return pa.concat_tables(tables)
        schema = table_schema(self.recipe_file)
        schema = schema.remove(len(schema) - 1)
        return (schema if columns is None else pa.schema([schema.field(name) for name in columns])).empty_table()

    def unreferenced(self, retention_hours: int) -> list[str]:
        """Paths of parts that no version within the retention needs: replaced, or written and never committed, before it.

        delta-rs finds them; files that are not parts (recipe.json) are none of its business.

        Raises:
            StorageError: they cannot be listed.
        """
        with delta_errors(f"cannot list the files of {self.uri}"):
            paths = self._delta.vacuum(retention_hours, dry_run=True, enforce_retention_duration=False, full=True)
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
        store, folder = open_store(self.uri), join(self.uri, "_delta_log")
        with delta_errors(f"cannot clean the log of {self.uri}"):
            self._delta.create_checkpoint()
            before = sum(map(len, store.list(folder)))
            self._delta.cleanup_metadata()
        return before - sum(map(len, store.list(folder)))

    def committed(self, app_id: str) -> int | None:
        """Number of the last transaction of an application that this version holds; None where it holds none."""
        return self._delta.transaction_version(app_id)

    def last_run(self) -> dict[str, Any] | None:
        """What the log says of the last run that embedded something; None where it is further back than HISTORY_COMMITS."""
        with delta_errors(f"cannot read the log of {self.uri}"):
            commits = self._delta.history(HISTORY_COMMITS)
        for commit in commits:
            said = commit.get("tlray")
            if isinstance(said, dict) and "bottleneck" in said:
                return said
        return None

    def commit(self, change: Change, *, app_id: str, sequence: int, info: dict[str, Any]) -> None:
        """Commit a change to the log, exactly once whatever fails on the way.

        delta-rs must not rebase by itself (`max_commit_retries=0`): a commit that came between may have added the same
        images, and a second commit of the same transaction is not refused from a fresh snapshot. So after any failure the
        log decides: the transaction is there (the answer was lost), or the table has not moved (try again), or it has
        (somebody else's commit: the caller decides).

        Args:
            change: parts to add and to remove.
            app_id: identifies the writer's run.
            sequence: number of this commit within the run, from 1 up.
            info: kept in the log beside the commit.

        Raises:
            ConcurrentWriteError: the table moved on under another writer.
            StorageError: the store failed for longer than all attempts.
        """
        wait_seconds = COMMIT_FIRST_WAIT_SECONDS
        for attempt in range(COMMIT_ATTEMPTS):
            before = self.version
            failure = self._try_commit(change, app_id, sequence, info)
            if failure is None:
                return
            if attempt:
                time.sleep(wait_seconds)
                wait_seconds *= 2
            try:
                self.refresh()
            except StorageError:
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

    def _try_commit(self, change: Change, app_id: str, sequence: int, info: dict[str, Any]) -> Exception | None:
        now_ms = time.time_ns() // 1_000_000
        actions = [part.add_action(time_ms=now_ms, data_change=change.data_change) for part in change.add]
        removals = [
            RemoveAction(part.path, change.data_change, now_ms, part.size_bytes, {"status": part.status})
            for part in change.remove
        ]
        try:
            self._delta.create_write_transaction(
                [*actions, *removals],
                "append",
                self._delta.schema(),
                partition_by=["status"],
                commit_properties=CommitProperties(
                    custom_metadata={"tlray": info},
                    max_commit_retries=0,
                    app_transactions=[Transaction(app_id, sequence)],
                ),
            )
            self.refresh()
        except (CommitFailedError, DeltaError, OSError, StorageError) as error:
            return error
        return None
