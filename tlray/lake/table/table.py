"""The table of embeddings: a Delta table, its recipe, and commits that happen exactly once."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.exceptions import DeltaError

from tlray.columns.column import Column, fields_of
from tlray.errors import ConfigError, ObjectNotFoundError, StorageError, TableError
from tlray.lake.place.alias import read_alias
from tlray.lake.place.occupant import occupant_of, require_new_table_place
from tlray.lake.storage.open import delta_environment, delta_options, open_store, require_writable
from tlray.lake.storage.uri import join, to_path
from tlray.lake.table.carried import carried_columns, with_fields
from tlray.lake.table.log.delta import delta_uri, open_delta
from tlray.lake.table.log.delta_log import CHECKPOINT_COMMITS, COMMIT_ATTEMPTS, COMMIT_FIRST_WAIT_SECONDS, DeltaLog
from tlray.lake.table.parts import READ_THREADS, Change, Part, read_part
from tlray.lake.table.recipe_check import check_recipe, held_in
from tlray.lake.table.schema import STATUS_FIELD, table_schema
from tlray.recipe import RecipeFile

RECIPE_NAME = "recipe.json"


class Table:
    """A table of embeddings or predictions, seen at one version of its log.

    Attributes:
        uri: where it is.
        recipe_file: its recipe, shapes and golden vectors.
        log: of its parts.
    """

    def __init__(self, uri: str, recipe_file: RecipeFile, log: DeltaLog) -> None:
        self.uri = uri
        self.recipe_file = recipe_file
        self.log = log

    @classmethod
    def open(cls, uri: str, version: int | None = None) -> "Table":
        """Open an existing table; all that reads tables comes this way.

        Args:
            uri: of the table, or of an alias of it.
            version: default the newest.

        Raises:
            TableError: there is none, no such version, or it was not made by tlray.
            StoreUnfitError: no table can be there.
            RecipeMismatchError: its recipe.json is damaged.
            AccessError, StorageError: the store refused or failed.
        """
        require_writable(uri)
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
        return cls(uri, RecipeFile.from_json(data, recipe_uri), DeltaLog(uri, delta))

    @classmethod
    def open_or_none(cls, uri: str) -> "Table | None":
        """Like `open`, but None where there is no table yet (a place with a recipe and no log counts as none).

        Raises:
            TableError: an alias is there: who writes names the table itself.
            StoreUnfitError: no table can be there.
        """
        require_writable(uri)
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
        return self.log.table_id

    @property
    def version(self) -> int:
        """Version of the log that this object sees."""
        return self.log.version

    @property
    def columns(self) -> list[str]:
        """Names of the columns that hold embeddings."""
        return list(self.recipe_file.embedding_columns)

    def column_of(self, name: str | None) -> str:
        """The column of embeddings that is meant.

        Args:
            name: of it; None for the only one.

        Raises:
            TableError: a table of predictions, with no embeddings in it.
            ConfigError: there is none of that name, or there are several and none was named.
        """
        if not self.columns:
            raise TableError(
                f"{self.uri} is a table of predictions without embeddings; expected a table of embeddings: name one that "
                "`tlray extract` made, or run `tlray predict` with --embeddings and another --out, which keeps them"
            )
        if name is None and len(self.columns) == 1:
            return self.columns[0]
        if name not in self.columns:
            given = "not given, and the table has several" if name is None else f"{name}"
            raise ConfigError(f"column is {given}; expected one of {self.uri}'s: {', '.join(self.columns)}")
        return str(name)

    @property
    def carried(self) -> tuple[Column, ...]:
        """Its columns that travelled into it from a source, beside its own."""
        return carried_columns(self.log.schema, table_schema(self.recipe_file).names)

    @property
    def schema(self) -> pa.Schema:
        """Names and types of all its columns."""
        return pa.schema([*table_schema(self.recipe_file), *fields_of(self.carried)])

    def refresh(self) -> None:
        """Move on to the newest version of the log.

        Raises:
            StorageError: the log is gone.
        """
        self.log.refresh()

    def parts(self, status: str | None = None) -> list[Part]:
        """List the parts that this version consists of, in the log's order.

        Args:
            status: `ok` or `failed`, for these alone; None for both.
        """
        return [part for part in self.log.parts() if status in (None, part.status)]

    def read(self, columns: Sequence[str] | None = None, *, status: str = "ok") -> pa.Table:
        """Read all rows of one partition into memory.

        Args:
            columns: only these; default all.
            status: `ok` or `failed`.
        """
        schema = self.schema
        wanted = [name for name in schema.names if name != STATUS_FIELD.name] if columns is None else columns
        nothing = pa.schema([schema.field(name) for name in wanted]).empty_table()
        with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="parts") as threads:
            return pa.concat_tables([nothing, *threads.map(lambda part: self.read_part(part.path, wanted), self.parts(status))])

    def read_part(self, path: str, columns: Sequence[str]) -> pa.Table:
        """Read some columns of one of its parts; null in one that travelled into the table after the part was written.

        Args:
            path: of the part, relative to the table.
            columns: names, but for that of the partition.

        Raises:
            ObjectNotFoundError: the file is gone: the table moved on and was vacuumed.
        """
        schema = self.schema
        return with_fields(read_part(self.uri, path, columns), [schema.field(name) for name in columns])

    def commit(self, change: Change, *, app_id: str, sequence: int, info: dict[str, Any]) -> None:
        """Commit a change, exactly once (`DeltaLog.commit`)."""
        self.log.commit(change, app_id=app_id, sequence=sequence, info=info)
