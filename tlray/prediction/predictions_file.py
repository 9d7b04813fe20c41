"""Predictions as one CSV or Parquet file: `--out predictions.csv`.

The predictions themselves are in a table beside the file, `predictions.csv.table`: with it the same command goes on after it
was killed, and later brings the file to where the source is by looking at new and changed images alone. The file is written at
the end of a run, whole or not at all; a run that ends early leaves the file of the run before.
"""

import mmap
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from tlray.config import PredictConfig
from tlray.errors import ConfigError, PlaceTakenError
from tlray.lake.place.occupant import occupant_of
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import to_uri
from tlray.lake.table.schema import STATUS_FIELD
from tlray.lake.table.table import Table
from tlray.machine.capacity import memory_budget_bytes
from tlray.predictor import Output

FILE_ENDINGS = (".csv", ".parquet")
OTHER_ENDINGS = (
    ".tsv", ".txt", ".json", ".jsonl", ".xlsx", ".xls", ".npy", ".npz", ".pkl", ".feather", ".arrow", ".h5", ".gz", ".zip",
)  # fmt: skip
"""Endings of files that are not written; a table of such a name is hardly meant."""

SEPARATOR = ";"
"""Between several labels in a cell of a CSV file, as in a labels file."""

_EXPANSION = 8
"""Bytes in memory for each byte of a part: zstd on labels and URIs gives 3 to 6."""


@dataclass(frozen=True)
class PredictionsFile:
    """A file that predictions go to.

    Attributes:
        uri: of the file.
        has_labels: whether the source has labels of its own.
    """

    uri: str
    has_labels: bool

    @classmethod
    def of(cls, config: PredictConfig) -> "PredictionsFile | None":
        """The file that a command names as its `out`; None where that is a table.

        Raises:
            ConfigError: the ending of a file that is not written, or vectors are to go into a CSV file.
            PlaceTakenError: something is there that was not written by `tlray predict`.
        """
        uri = to_uri(config.out)
        ending = PurePosixPath(uri).suffix.lower()
        if ending not in (*FILE_ENDINGS, *OTHER_ENDINGS):
            return None
        there = occupant_of(uri)
        if there is not None and there.kind in ("table", "lease", "alias"):
            return None  # as version 0.1 made them of any name
        if ending in OTHER_ENDINGS:
            raise ConfigError(
                f"out is {config.out}, expected a .csv or .parquet file, or a folder for a table; name one of these"
            )
        if ending == ".csv" and config.embeddings:
            raise ConfigError(f"embeddings do not fit into the cells of {config.out}; name a .parquet file, or a folder")
        file = cls(uri, config.source.labels != "none")
        if there is not None and (open_store(uri).stat(uri) is None or occupant_of(file.table_uri) is None):
            raise PlaceTakenError(f"{uri} is there, and `tlray predict` did not write it; remove it, or name another file")
        return file

    @property
    def is_csv(self) -> bool:
        """Whether it is a CSV file, not a Parquet file."""
        return self.uri.lower().endswith(".csv")

    @property
    def table_uri(self) -> str:
        """The table that the file is written from."""
        return f"{self.uri}.table"

    def check(self, output: Output) -> None:
        """Refuse a model whose labels the file could not keep apart.

        Raises:
            ConfigError: names one.
        """
        odd = next((name for name in output.classes if SEPARATOR in name), None)
        if output.task == "multi" and odd is not None and self.is_csv:
            raise ConfigError(
                f"the label {odd!r} has a {SEPARATOR}, which separates the labels of an image in {self.uri}; name a .parquet "
                "file"
            )

    def write(self) -> int:
        """Write the file from its table, sorted by URI where that fits in memory, else in the order of the table's parts.

        Returns:
            How many rows it has: one an image, failed ones included.

        Raises:
            StorageError: the store failed; the file is as it was before.
        """
        table = Table.open(self.table_uri)
        with tempfile.TemporaryDirectory(prefix="tlray-") as scratch:
            path = Path(scratch) / "predictions"
            rows = self._write_to(path, table)
            with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                view = memoryview(data)
                try:
                    open_store(self.uri).write(self.uri, view)
                finally:
                    view.release()
        return rows

    def _write_to(self, path: Path, table: Table) -> int:
        blocks = _blocks(table)
        if self.is_csv:
            output = table.recipe_file.output
            assert output is not None
            blocks = (_flat(block, output, has_labels=self.has_labels) for block in blocks)
        first = next(blocks)
        count = len(first)
        with _open_writer(path, first.schema, is_csv=self.is_csv) as writer:
            writer.write_table(first)
            for block in blocks:
                writer.write_table(block)
                count += len(block)
        return count


def _open_writer(path: Path, schema: pa.Schema, *, is_csv: bool) -> "pyarrow.csv.CSVWriter | pq.ParquetWriter":
    return pyarrow.csv.CSVWriter(path, schema) if is_csv else pq.ParquetWriter(path, schema, compression="zstd")


def _blocks(table: Table) -> Iterator[pa.Table]:
    """Read all rows of a table in blocks, failed ones too; there is at least one block, which may be empty."""
    parts = sorted(table.parts(), key=lambda part: part.path)
    if _EXPANSION * sum(part.size_bytes for part in parts) <= memory_budget_bytes() // 2:
        both = [table.read(status=status) for status in ("ok", "failed")]
        yield pa.concat_tables(both, promote_options="default").sort_by("uri")
        return
    names = [name for name in table.schema.names if name != STATUS_FIELD.name]
    for part in parts:
        yield table.read_part(part.path, names)


def _flat(rows: pa.Table, output: Output, *, has_labels: bool) -> pa.Table:
    """Predictions with one value in each cell; `uri` first and `error` last.

    One label an image: the prediction with its probability, then the next best labels and theirs (`label_2`, `probability_2`).
    Several: all predicted labels in one cell, then the best ones. Numbers: a column for each output.
    """
    columns: dict[str, pa.ChunkedArray] = {"uri": rows["uri"]}
    if has_labels:
        columns["label"] = rows["label"]
    if output.task == "regression":
        taken = {"uri", "label", "error"}
        for at, name in enumerate(output.classes):
            columns[f"{name} (predicted)" if name in taken else name] = pc.list_element(rows["values"], at)
        return pa.table({**columns, "error": rows["error"]})
    first = 1
    if output.task == "single":
        columns |= {"prediction": rows["prediction"], "probability": rows["probability"]}
        first = 2
    else:
        columns["predictions"] = pc.binary_join(rows["predictions"], SEPARATOR)
    for place in range(first, output.top_k + 1):
        columns[f"label_{place}"] = pc.list_element(rows["top_labels"], place - 1)
        columns[f"probability_{place}"] = pc.list_element(rows["top_probabilities"], place - 1)
    return pa.table({**columns, "error": rows["error"]})
