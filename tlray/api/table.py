"""`tlray.open`: a table of embeddings or predictions in Python.

Shape legend: N rows, D length of a vector.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.api.display.html import gallery, rows_of
from tlray.api.embedding.encoder import Encoder
from tlray.api.keywords import texts
from tlray.errors import ConfigError, TableError
from tlray.lake.storage.uri import join, to_uri
from tlray.lake.table.maintenance import show
from tlray.lake.table.parts import READ_THREADS, Part, vectors_of
from tlray.lake.table.schema import STATUS_FIELD
from tlray.lake.table.table import Table
from tlray.recipe import AnyRecipe, TextRecipe
from tlray.where.condition import Condition, read_condition

if TYPE_CHECKING:
    import pandas as pd
    import torch

Status = Literal["ok", "failed", "all"]

_SHOWN_IMAGES = 8
_SHOWN_CHARACTERS = 120


class TableView:
    """A table at one version, `tlray.Table` by its public name; frozen.

    Its rows are those with a vector or a prediction, unless `filter` asks for others.

    All of its methods give the same rows in the same order, so labels from one of them belong to vectors from another.

    Attributes:
        uri: where it is; of an alias, the table that it names.
    """

    def __init__(self, table: Table, status: Status = "ok", conditions: "tuple[pc.Expression | Condition, ...]" = ()) -> None:
        self._table, self._status, self._conditions = table, status, conditions
        self.uri = table.uri

    @property
    def version(self) -> int:
        """The version that was opened; later commits do not change it."""
        return self._table.version

    @property
    def recipe(self) -> AnyRecipe:
        """All that its vectors depend on."""
        return self._table.recipe_file.recipe

    @property
    def recipe_id(self) -> str:
        """Fingerprint of the recipe that made the table's embeddings."""
        return self._table.recipe_file.recipe_id

    @property
    def embedding_columns(self) -> list[str]:
        """Names of its columns of vectors; a table of predictions may have none."""
        return self._table.columns

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """For each embedding column, the shape of one row's tensor before it was flattened."""
        return {name: self._table.recipe_file.shapes[name] for name in self.embedding_columns}

    @property
    def files(self) -> list[str]:
        """URIs of the Parquet files that hold its rows, for other engines; conditions of `filter` are not applied to them."""
        return [join(self.uri, part.path) for part in self._parts()]

    @property
    def schema(self) -> pa.Schema:
        """Names and types of its columns."""
        return self._table.schema

    def filter(
        self,
        condition: pc.Expression | None = None,
        *,
        where: str = "",
        label: str | Sequence[str] = (),
        prefix: str | Sequence[str] = (),
        status: Status | None = None,
    ) -> "TableView":
        """The rows that fulfil all conditions, those of earlier filters included.

        Args:
            condition: of pyarrow's, such as `pyarrow.compute.field("width") >= 640`.
            where: a condition in SQL's words, such as `price < 10 and site = 'A'`, as `tlray search --where`.
            label: only rows with one of these labels, as `tlray search --label`.
            prefix: only rows whose URI begins with one of these.
            status: `ok`, the default: rows with a vector; `failed`: images that could not be used, whose `error` says why;
                `all`: both.

        Raises:
            WhereError: `where` cannot be read, or names a column that is not there.
            ConfigError: an unknown status.
        """
        if status not in (None, *get_args(Status)):
            raise ConfigError(f"status: expected one of {', '.join(get_args(Status))}, given {status!r}")
        labels, prefixes = texts("label", label), texts("prefix", prefix)
        conditions: list[pc.Expression | Condition] = [] if condition is None else [condition]
        if where:
            conditions.append(read_condition(where, self.schema, self.uri))
        if labels:
            conditions.append(pc.field("label").isin(list(labels)))
        if prefixes:
            conditions.append(reduce(pc.Expression.__or__, (pc.starts_with(pc.field("uri"), each) for each in prefixes)))
        return TableView(self._table, status or self._status, (*self._conditions, *conditions))

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Its rows as an Arrow table.

        Args:
            columns: only these; default all. Vectors are lists of float32.

        Raises:
            ConfigError: it has no such column.
            StorageError: its store failed.
        """
        schema, parts = self.schema, self._parts()
        wanted = schema.names if columns is None else list(columns)
        unknown = [name for name in wanted if name not in schema.names]
        if unknown:
            raise ConfigError(f"{self.uri} has no column {', '.join(unknown)}; it has {', '.join(schema.names)}")
        with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="parts") as threads:
            tables = list(threads.map(lambda part: self._read(part, wanted), parts))
        return pa.concat_tables([pa.schema([schema.field(name) for name in wanted]).empty_table(), *tables])

    def to_pandas(self, columns: Sequence[str] | None = None) -> "pd.DataFrame":
        """Its rows as a data frame; vectors are arrays of float32. For columns see `to_arrow`."""
        return self.to_arrow(columns).to_pandas()

    def to_numpy(self, column: str | None = None) -> np.ndarray:
        """One column of the table as a NumPy array.

        Args:
            column: default the only embedding column.

        Returns:
            Of an embedding column vectors_ND, float32; of any other one its N values.

        Raises:
            ConfigError: it has no such column, or several embedding columns and none is named.
            TableError: it is a table of predictions without vectors, and no column is named.
        """
        name = self._table.column_of(column) if column is None else column
        values = self.to_arrow([name])[name]
        length = self._table.recipe_file.lengths.get(name)
        if length is None:
            found: np.ndarray = values.to_numpy()
            return found
        if values.null_count:
            raise TableError(f"{values.null_count} of {len(values)} rows have no {name}, as they failed; leave status at ok")
        return vectors_of(values) if len(values) else np.empty((0, length), np.float32)

    def to_torch(self, column: str | None = None) -> "torch.Tensor":
        """An embedding column as a tensor vectors_ND, float32, on the CPU; see `to_numpy`."""
        import torch

        vectors_ND = self.to_numpy(column)
        return torch.from_numpy(vectors_ND if vectors_ND.flags.writeable else vectors_ND.copy())

    def encoder(self, column: str | None = None, **options: Any) -> Encoder:
        """The encoder that made the table, which is loaded now and has to compute the table's golden vectors.

        Args:
            column: of the embedding columns, the one to compute; default the only one.
            options: `device`, `batch_size`, `on_error`, or `weights` where the file has moved; see `Encoder`.

        Raises:
            GoldenMismatchError: this machine computes other numbers than the table holds.
            WeightsError: the weights changed or are gone.
        """
        return Encoder(table=self.uri, column=column, **options).fit()

    def to_dict(self) -> dict[str, Any]:
        """What `tlray show` says of the table, as a JSON object."""
        return show(self._table)

    def __len__(self) -> int:
        if self._conditions:
            return len(self.to_arrow(["uri"]))
        return sum(part.rows for part in self._parts())

    def __repr__(self) -> str:
        filtered = ", filtered" if self._conditions or self._status != "ok" else ""
        return f"<tlray.Table {self.uri}, version {self.version}, {self.recipe.backbone}{filtered}>"

    def _repr_html_(self) -> str:
        first = self._head()
        rows = first.slice(0, _SHOWN_IMAGES).to_pylist()
        count = f"{len(self):,} rows" if not self._conditions else "some rows"
        columns = ", ".join(f"{name} {shape}" for name, shape in self.shapes.items())
        heading = f"{self.uri}, version {self.version}: {count}, {self.recipe.backbone}, {columns or 'predictions'}"
        if isinstance(self.recipe, TextRecipe):
            names = ("uri", "text", "label", "error")
            return rows_of(heading, [{name: (row[name] or "")[:_SHOWN_CHARACTERS] for name in names} for row in rows])
        return gallery(heading, [(row["uri"], row["etag"], row["label"] or row["error"] or "") for row in rows])

    def _head(self) -> pa.Table:
        """A few of its rows, from the first parts that have some."""
        names = ["uri", "etag", "label", "error", *(["text"] if isinstance(self.recipe, TextRecipe) else [])]
        for part in self._parts():
            rows = self._read(part, names)
            if len(rows):
                return rows
        return pa.schema([self.schema.field(name) for name in names]).empty_table()

    def _parts(self) -> list[Part]:
        return self._table.parts(None if self._status == "all" else self._status)

    def _read(self, part: Part, columns: list[str]) -> pa.Table:
        """The rows of a part that fulfil the conditions; vectors are read only where they are wanted or asked about."""
        wanted = pa.schema([self.schema.field(name) for name in columns])
        if not self._conditions:
            return self._read_columns(part, columns).cast(wanted)
        light = [name for name in self.schema.names if name not in self._table.recipe_file.lengths or name in columns]
        for names in (light, self.schema.names):
            try:
                return _fulfilling(self._read_columns(part, names), self._conditions).select(columns).cast(wanted)
            except pa.ArrowInvalid as error:
                reason = str(error).splitlines()[0]
        raise ConfigError(f"the condition of filter does not fit {self.uri}: {reason}; it has {', '.join(self.schema.names)}")

    def _read_columns(self, part: Part, names: list[str]) -> pa.Table:
        """Columns of a part, the partition's own among them, which its file does not hold."""
        in_file = [name for name in names if name != STATUS_FIELD.name] or ["uri"]  # of no column there are no rows
        rows = self._table.read_part(part.path, in_file)
        if STATUS_FIELD.name in names:
            rows = rows.append_column(STATUS_FIELD, pa.array([part.status] * len(rows), pa.string()))
        return rows.select(names)


def _fulfilling(rows: pa.Table, conditions: "Sequence[pc.Expression | Condition]") -> pa.Table:
    """The rows that fulfil all conditions."""
    for condition in conditions:
        rows = rows.filter(pa.array(condition.mask(rows)) if isinstance(condition, Condition) else condition)
    return rows


def open(uri: str | os.PathLike[str], version: int | None = None) -> TableView:  # noqa: A001
    """Open a table that `tlray.extract` or `tlray.predict` made.

    Args:
        uri: URI or path of the table, or of an alias of it.
        version: default the newest.

    Raises:
        TableError: there is none, or no such version.
    """
    return TableView(Table.open(to_uri(os.fspath(uri)), version))
