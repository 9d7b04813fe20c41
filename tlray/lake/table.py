"""The table of embeddings: a Delta table, its recipe, and commits that happen exactly once."""

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import RemoveAction, Transaction

from tlray.errors import AccessError, ConcurrentWriteError, ObjectNotFoundError, RecipeMismatchError, StorageError, TableError
from tlray.lake.parts import Part, read_part, table_schema
from tlray.lake.storage import delta_options, join, open_store, to_path
from tlray.recipe import Recipe, RecipeFile

RECIPE_NAME = "recipe.json"
HISTORY_COMMITS = 20
"""How far back `last_run` looks: compaction commits after a run."""

COMMIT_ATTEMPTS = 4
COMMIT_FIRST_WAIT_SECONDS = 0.5
"""Doubled after each failed attempt; within each, delta-rs itself tries for as long as a store's restart takes."""

_ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Change:
    """What one commit does to a table.

    Attributes:
        add: parts that become visible.
        remove: parts that stop being so.
        data_change: False where the same rows only move between files.
    """

    add: Sequence[Part] = field(default_factory=tuple)
    remove: Sequence[Part] = field(default_factory=tuple)
    data_change: bool = True


class Table:
    """A table at one version.

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
        """Open an existing table.

        Args:
            uri: of the table.
            version: default the newest.

        Raises:
            TableError: there is none, no such version, or it was not made by tlray.
            RecipeMismatchError: its recipe.json is damaged.
            AccessError, StorageError: the store refused or failed.
        """
        delta = _open_delta(uri, version)
        if delta is None:
            raise TableError(
                f"no table at {uri}; expected a folder that `tlray extract` made: check the address and the credentials"
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
        """Like `open`, but None where there is no table yet (a place with a recipe and no log counts as none)."""
        return None if _open_delta(uri, None) is None else cls.open(uri)

    @classmethod
    def create(cls, uri: str, recipe_file: RecipeFile) -> "Table":
        """Make an empty table, or open the one that another driver made of the same recipe in the meantime.

        The recipe is written first and only if absent, so a table never exists without one.

        Raises:
            RecipeMismatchError: another recipe is there already.
        """
        store, recipe_uri = open_store(uri), join(uri, RECIPE_NAME)
        if not store.write(recipe_uri, recipe_file.to_json(), if_absent=True):
            there = RecipeFile.from_json(store.read(recipe_uri).data, recipe_uri)
            check_recipe(there, recipe_file.recipe, uri)
        schema = Schema.from_arrow(table_schema(list(recipe_file.recipe.columns.values())))
        if uri.startswith("file://"):
            to_path(uri).mkdir(parents=True, exist_ok=True)
        try:
            DeltaTable.create(
                _delta_uri(uri),
                schema,
                mode="ignore",
                partition_by=["status"],
                description=f"tlray embeddings of recipe {recipe_file.recipe_id}",
                # With retries, several creators at once would all win, one version after the other.
                commit_properties=CommitProperties(max_commit_retries=0),
                storage_options=delta_options(uri),
            )
        except (DeltaError, OSError) as error:
            # Another driver may have created it at the same moment; whether it did is what counts.
            if _open_delta(uri, None) is None:
                raise StorageError(f"cannot create a table at {uri}: {error}; run the same command again") from error
        return cls.open(uri)

    @property
    def version(self) -> int:
        """Of the snapshot at hand."""
        return self._delta.version()

    @property
    def columns(self) -> list[str]:
        """Names of the embedding columns."""
        return list(self.recipe_file.recipe.columns.values())

    def refresh(self) -> None:
        """Move to the newest version."""
        delta = _open_delta(self.uri, None)
        if delta is None:
            raise StorageError(f"the log of {self.uri} is gone; restore it, or extract to a new table")
        self._delta = delta

    def parts(self) -> list[Part]:
        """All live parts, in the log's order."""
        actions = pa.table(self._delta.get_add_actions(flatten=True)).to_pylist()
        return [
            Part(
                path=action["path"],
                status=action["partition.status"],
                rows=action["num_records"],
                size_bytes=action["size_bytes"],
            )
            for action in actions
        ]

    def read(self, columns: Sequence[str] | None = None, *, status: str = "ok") -> pa.Table:
        """Rows of one partition, all in memory.

        Args:
            columns: only these; default all.
            status: `ok` or `failed`.
        """
        tables = [read_part(self.uri, part.path, columns) for part in self.parts() if part.status == status]
        if tables:
            return pa.concat_tables(tables)
        schema = table_schema(self.columns).remove(len(table_schema(self.columns)) - 1)
        return (schema if columns is None else pa.schema([schema.field(name) for name in columns])).empty_table()

    def unreferenced(self, retention_hours: int) -> list[str]:
        """Paths of parts that no version within the retention needs: replaced, or written and never committed, before it.

        delta-rs finds them; files that are not parts (recipe.json) are none of its business.
        """
        paths = self._delta.vacuum(retention_hours, dry_run=True, enforce_retention_duration=False, full=True)
        return sorted(path for path in paths if path.startswith("status=") and path.endswith(".parquet"))

    def committed(self, app_id: str) -> int | None:
        """The last transaction of an application that this snapshot holds."""
        return self._delta.transaction_version(app_id)

    def last_run(self) -> dict[str, Any] | None:
        """What the newest of the last HISTORY_COMMITS commits that knows it says of its run."""
        for commit in self._delta.history(HISTORY_COMMITS):
            said = commit.get("tlray")
            if isinstance(said, dict) and "bottleneck" in said:
                return said
        return None

    def commit(self, change: Change, *, app_id: str, sequence: int, info: dict[str, Any]) -> None:
        """Commit a change exactly once.

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
            f"cannot commit to {self.uri} after {COMMIT_ATTEMPTS} attempts: {_one_line(failure)}; "
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


def check_recipe(there: RecipeFile, ours: Recipe, uri: str) -> None:
    """Refuse a table of another recipe.

    Raises:
        RecipeMismatchError: names the fields that differ.
    """
    if there.recipe_id == ours.recipe_id:
        return
    differences = [line for line in ours.differences(there.recipe) if not line.startswith("weights:")]
    raise RecipeMismatchError(
        f"{uri} holds embeddings of recipe {there.recipe_id[:12]}, but this run's is {ours.recipe_id[:12]} "
        f"(field: this run's, the table's; {'; '.join(differences)}); give the table's recipe, or name a new table"
    )


def row_counts(parts: Iterable[Part]) -> dict[str, int]:
    """Rows of each partition."""
    counts = {"ok": 0, "failed": 0}
    for part in parts:
        counts[part.status] += part.rows
    return counts


def _delta_uri(uri: str) -> str:
    return str(to_path(uri)) if uri.startswith("file://") else uri


def _open_delta(uri: str, version: int | None, *, is_second_try: bool = False) -> DeltaTable | None:
    try:
        return DeltaTable(_delta_uri(uri), version=version, storage_options=delta_options(uri))
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as error:
        text = _one_line(error)
        if version is not None and "version" in text.lower():
            raise TableError(f"{uri} has no version {version} any more: {text}") from error
        if any(word in text for word in ("403", "Forbidden", "AccessDenied", "PermissionDenied", "Permission denied")):
            if not is_second_try:  # credentials may just have expired: the options are made anew, of those of this moment
                return _open_delta(uri, version, is_second_try=True)
            raise AccessError(f"no permission to read the table at {uri}: {text}; check the credentials") from error
        raise StorageError(f"cannot read the log of {uri}: {text}") from error


def _one_line(error: BaseException | None) -> str:
    """A message of delta-rs, whose cause is in one of several coloured lines."""
    text = " ".join(_ANSI_COLOUR.sub("", str(error)).split()) or type(error).__name__
    return f"the disk is full: {text}" if "No space left" in text else text
