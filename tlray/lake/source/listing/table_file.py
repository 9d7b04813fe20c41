"""Tables that people hand over with names and labels: CSV, TSV and Parquet files, as spreadsheets and scripts write them.

The cells of CSV and TSV files are texts and nothing else: to guess types would turn the label `007` into 7.
"""

import codecs
import csv
import io
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from tlray.errors import SourceError
from tlray.lake.storage.open import open_store
from tlray.lake.storage.store import READ_BUFFER_BYTES

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLE_ENDINGS = (*_DELIMITERS, ".parquet")
"""How the name of such a file ends, in lower case."""

_BATCH_ROWS = 65_536
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Longest first; that of UTF-8 is Arrow's business."""

_OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_UNREADABLE = (pa.ArrowException, OSError, UnicodeError)


@dataclass(frozen=True)
class TableFile:
    """A table whose columns are known and whose rows can be read.

    Attributes:
        uri: where it is.
        columns: their names, in the file's order; a name may come twice.
        delimiter: between the cells of a row; None in a Parquet file.
        encoding: of a text file.
        schema: of a Parquet file, whose footer is read once; None of a text file, whose cells have no types.
    """

    uri: str
    columns: tuple[str, ...]
    delimiter: str | None
    encoding: str = "utf-8"
    schema: pa.Schema | None = None

    def check_once(self, columns: Iterable[str]) -> None:
        """Refuse columns whose name is there more than once: which of them is meant would be a guess.

        Raises:
            SourceError: one is.
        """
        for name in columns:
            if (count := self.columns.count(name)) > 1:
                raise SourceError(f"{self.uri} has {count} columns named {name!r}; rename all but one")

    def hint(self) -> str:
        """What may be wrong with a table in which a column is missing; empty, or the end of a sentence."""
        if len(self.columns) == 1 and self.delimiter is not None:
            for character, name in _OTHER_DELIMITERS.items():
                if character != self.delimiter and character in self.columns[0]:
                    return f"; its cells seem to be separated by {name}, expected {self.delimiter!r}"
        return ""

    def batches(
        self,
        columns: Sequence[str],
        *,
        raw: str | None = None,
        batch_rows: int = _BATCH_ROWS,
        block_bytes: int = READ_BUFFER_BYTES,
    ) -> Iterator[pa.RecordBatch]:
        """Read some columns, a batch of rows at a time.

        Args:
            columns: names, each in the table once.
            raw: of a text file, the column whose cells are left bytes, whatever they hold.
            batch_rows: of a Parquet file, rows at a time.
            block_bytes: of a text file, bytes at a time; a row has to fit.

        Yields:
            The rows in the file's order; cells of text files as strings, empty ones as empty strings.

        Raises:
            SourceError: the file is damaged, is not of its encoding, or ends within a quoted cell.
            StorageError: the store failed.
        """
        self.check_once(columns)
        rows = 0
        try:
            found = (
                self._parquet_batches(columns, batch_rows)
                if self.delimiter is None
                else self._text_batches(columns, raw, block_bytes)
            )
            for batch in found:
                yield batch
                rows += len(batch)
        except _UNREADABLE as error:
            raise SourceError(f"{self.uri} cannot be read after row {rows}: {_said(error, self)}") from error

    def _parquet_batches(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        with open_store(self.uri).open(self.uri) as stream:
            file = pq.ParquetFile(stream, buffer_size=READ_BUFFER_BYTES, pre_buffer=False)
            for group in range(file.num_row_groups):
                rows = 0
                for batch in file.iter_batches(batch_rows, [group], list(columns)):
                    rows += len(batch)
                    yield batch
                if rows != (wanted := file.metadata.row_group(group).num_rows):
                    raise pa.ArrowInvalid(f"row group {group} has {rows} rows, {wanted} by the footer")

    def _text_batches(self, columns: Sequence[str], raw: str | None, block_bytes: int) -> Iterator[pa.RecordBatch]:
        convert = pyarrow.csv.ConvertOptions(
            column_types={name: pa.binary() if name == raw else pa.string() for name in columns},
            include_columns=list(columns),
            strings_can_be_null=False,
        )
        with open_store(self.uri).stream(self.uri)[0] as stream:
            counted = _QuoteCounter(stream)
            with _open_csv(cast("BinaryIO", counted), self.delimiter, self.encoding, convert, block_bytes) as reader:
                for batch in reader:
                    _check_nul(batch, self, raw)
                    yield batch
        if (counted.quotes % 2 or self.encoding != "utf-8") and self._ends_within_quotes():
            raise SourceError(
                f"{self.uri} ends within a quoted cell, so rows after its quotation mark would be lost; close it, or restore "
                "the end of the file"
            )

    def _ends_within_quotes(self) -> bool:
        """Whether a line that is added would not be a row of its own."""
        added = "\x00"
        with open_store(self.uri).stream(self.uri)[0] as stream:
            lines = io.TextIOWrapper(stream, self.encoding, newline="")
            rows = csv.reader(_followed_by(lines, added), delimiter=cast("str", self.delimiter))
            try:
                return deque(rows, maxlen=1).pop() != [added]
            except csv.Error:  # a cell of more than 128 kB
                return True


def open_table_file(uri: str, encoding: str | None = None) -> TableFile:
    """Read the names of a table's columns.

    Args:
        uri: of the file; its ending tells the format.
        encoding: of a text file; default by its byte order mark, else UTF-8.

    Raises:
        SourceError: it is of another ending, empty, or not what its ending says.
        StorageError: the store failed.
    """
    ending = ending_of(uri)
    if ending not in TABLE_ENDINGS:
        raise SourceError(f"{uri} is not a table by its name; expected one that ends in .csv, .tsv or .parquet")
    file = TableFile(uri, (), _DELIMITERS.get(ending))
    try:
        if ending == ".parquet":
            with open_store(uri).open(uri) as stream:
                schema = pq.read_schema(stream)
            return TableFile(uri, tuple(schema.names), None, schema=schema)
        if encoding is None:
            with open_store(uri).stream(uri)[0] as stream:
                encoding = _encoding(stream.read(4), uri)
        file = TableFile(uri, (), file.delimiter, encoding)
        with open_store(uri).stream(uri)[0] as stream, _open_csv(stream, file.delimiter, encoding) as reader:
            return TableFile(uri, tuple(reader.schema.names), file.delimiter, encoding)
    except _UNREADABLE as error:
        raise SourceError(f"{uri} cannot be read: {_said(error, file)}") from error


def ending_of(uri: str) -> str:
    """The ending of a file's name, with its dot, in lower case; empty where it has none."""
    name = uri.rpartition("/")[2]
    return f".{name.rpartition('.')[2].lower()}" if "." in name else ""


class _QuoteCounter(io.RawIOBase):
    """Passes a stream on and counts its quotation marks: in a CSV file that is whole, their number is even as a rule."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.quotes = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.quotes += data.count(b'"')
        return data


def _open_csv(
    stream: BinaryIO,
    delimiter: str | None,
    encoding: str,
    convert: pyarrow.csv.ConvertOptions | None = None,
    block_bytes: int = READ_BUFFER_BYTES,
) -> pyarrow.csv.CSVStreamingReader:
    read = pyarrow.csv.ReadOptions(block_size=block_bytes, encoding=encoding)
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    return pyarrow.csv.open_csv(stream, read_options=read, parse_options=parse, convert_options=convert)


def _encoding(head: bytes, uri: str) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding
    if b"\x00" in head:
        raise SourceError(f"{uri} is no text in UTF-8 (there are NUL characters at its beginning); save it as UTF-8")
    return "utf-8"


def _check_nul(batch: pa.RecordBatch, file: TableFile, raw: str | None = None) -> None:
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if name != raw and pc.any(pc.match_substring(column, "\x00")).as_py():
            raise SourceError(f"{file.uri} has a NUL character in its column {name!r}; it is damaged, or no text file")


def _followed_by(lines: Iterable[str], last: str) -> Iterator[str]:
    text = ""
    for text in lines:
        yield text
    if text and not text.endswith(("\n", "\r")):
        yield "\n"
    yield last


def _said(error: BaseException, file: TableFile) -> str:
    """A library's message in one line, and what to do about it."""
    text = " ".join(str(error).split())
    if file.delimiter is not None and ("UTF8" in text or isinstance(error, UnicodeError)):
        return f"its text is not {file.encoding.upper()} ({text}); save it as UTF-8"
    return text
