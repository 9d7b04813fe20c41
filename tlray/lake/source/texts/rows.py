"""Tables that hold texts: CSV, TSV, Parquet and JSON lines, of which each row is an item with its text in the listing itself.

A row's URI is its file's, `#`, and its number from 0 up, or what a column of names says; its etag is the hash of its text, so a
file that grows, or of which rows change, is embedded again in those rows alone.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.columns.column import Column
from tlray.config import SourceConfig
from tlray.errors import ImageErrorCode, SourceError
from tlray.lake.source.label_text import folder_labels, label_text, label_texts
from tlray.lake.source.listing.carried import carried_fields, carried_values
from tlray.lake.source.listing.json_lines import json_lines, read_object
from tlray.lake.source.listing.table_file import TABLE_ENDINGS, TableFile, ending_of, open_table_file

JSON_ENDINGS = (".jsonl", ".ndjson")
ROW_ENDINGS = (*TABLE_ENDINGS, *JSON_ENDINGS)
"""How the name of a table of texts ends, in lower case."""

TEXT, FAULT = "its text", "its fault"
TEXT_FIELDS = (pa.field(TEXT, pa.large_binary()), pa.field(FAULT, pa.string()))
"""What a listing of rows has beside what any listing has: the text, undecoded, or the code and the reason why there is none.
Their names have a space, which those of columns that travel cannot have."""

BATCH_ROWS = 2**12
BLOCK_BYTES = 2**25
"""How much of a CSV file is read at once; a row has to fit."""

_ETAG_BYTES = 16
"""Length of a BLAKE2b digest: two of a billion texts have the same with a probability of 1e-21."""

_UTF8 = ("utf-8", "utf8", "utf-8-sig")


def check_rows(uri: str, config: SourceConfig) -> None:
    """Refuse a table without the columns of texts, names and labels that are asked for.

    Args:
        uri: of the file.
        config: of the source.

    Raises:
        SourceError: that is so, or the column does not hold texts.
    """
    next(read_rows(uri, config), None)


def read_rows(uri: str, config: SourceConfig, columns: Sequence[Column] = ()) -> Iterator[pa.Table]:
    """The rows of a table of texts, streamed.

    Args:
        uri: of the file; its ending tells the format.
        config: of the source: `text`, `id`, `labels` and `encoding`.
        columns: that travel; null where the file has none of that name.

    Yields:
        uri, etag, size_bytes, label, TEXT_FIELDS, and the columns.

    Raises:
        SourceError: no such column, a row without its name, a value of another type than its column's, or a file that is not
            what its ending says.
        StorageError: the store failed.
    """
    read = _json_rows if ending_of(uri) in JSON_ENDINGS else _table_rows
    row = 0
    for texts, faults, names, labels, values in read(uri, config, columns):
        numbers = pa.array(np.arange(row, row + len(texts))).cast(pa.string())
        yield pa.table(
            {
                "uri": pc.binary_join_element_wise(uri, numbers if names is None else names, "#"),
                "etag": pa.array(_etags(texts), pa.string()),
                "size_bytes": pc.binary_length(texts).cast(pa.int64()).fill_null(0),
                "label": folder_labels(pa.array([uri] * len(texts))) if config.labels == "folder" else labels,
                TEXT: texts,
                FAULT: faults,
                **{column.name: each for column, each in zip(columns, values, strict=True)},
            }
        )
        row += len(texts)


class _Rows(NamedTuple):
    """Some rows; no names where nobody asks for them, and for each column that travels its values."""

    texts: pa.Array
    faults: pa.Array
    names: pa.Array | None
    labels: pa.Array
    values: list[pa.Array]


def _etags(texts: pa.Array) -> list[str]:
    """The etags of texts, large_binary, none of which is copied for it: together they may be most of the memory in use."""
    if not len(texts):
        return []
    texts = texts.fill_null(b"")
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1].tolist()
    view = memoryview(data or b"")
    return [hashlib.blake2b(view[start:end], digest_size=_ETAG_BYTES).hexdigest() for start, end in pairwise(ends)]


def open_rows(uri: str, config: SourceConfig) -> TableFile:
    """Open a table of texts that is a CSV, TSV or Parquet file.

    Raises:
        SourceError: it is not what its ending says.
        StorageError: the store failed.
    """
    return open_table_file(uri, None if config.encoding.lower() in _UTF8 else config.encoding)


def _table_rows(uri: str, config: SourceConfig, columns: Sequence[Column]) -> Iterator[_Rows]:
    file = open_rows(uri, config)
    label = None if config.labels in ("none", "folder") else config.labels
    assert config.text is not None
    for what, name in (("texts", config.text), ("names", config.id), ("labels", label)):
        if name is not None and name not in file.columns:
            listed = ", ".join(map(repr, file.columns))
            raise SourceError(f"{uri} has no column {name!r} of {what}; its columns are {listed}{file.hint()}")
    there = [column for column in columns if column.name in file.columns]
    carried = [column.name for column in there]
    wanted = list(dict.fromkeys(name for name in (config.text, config.id, label, *carried) if name is not None))
    row = 0
    for batch in file.batches(wanted, raw=config.text, batch_rows=BATCH_ROWS, block_bytes=BLOCK_BYTES):
        nothing = pa.nulls(len(batch), pa.string())
        values = dict(zip(carried, carried_values(batch, there, uri, row), strict=True))
        yield _Rows(
            _as_bytes(batch[config.text], config.text, file),
            nothing,
            None if config.id is None else _names(batch[config.id], config.id, file, row),
            nothing if label is None else _labels(batch[label], label, file),
            [values.get(column.name, pa.nulls(len(batch), column.field.type)) for column in columns],
        )
        row += len(batch)


def _as_bytes(column: pa.Array, name: str, file: TableFile) -> pa.Array:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or _is_binary(kind)):
        raise SourceError(f"{file.uri}: column {name!r} holds {kind}, expected texts")
    return column.cast(kind).cast(pa.large_binary())


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _names(column: pa.Array, name: str, file: TableFile, row: int) -> pa.Array:
    """What rows are called; all of them are, or a row would be another one in the next run."""
    names = _labels(column, name, file)
    if names.null_count:
        missing = row + int(np.argmax(names.is_null().to_numpy(zero_copy_only=False)))
        raise SourceError(
            f"{file.uri} has no {name!r} in row {missing + 1} (the header not counted); fill it, or leave source.id out"
        )
    return names


def _labels(column: pa.Array, name: str, file: TableFile) -> pa.Array:
    try:
        return label_texts(column if not _is_binary(column.type) else column.cast(pa.string()))
    except (SourceError, pa.ArrowException) as error:
        raise SourceError(f"{file.uri}, column {name!r}: {error}") from error


class _JsonRow(NamedTuple):
    """A line: its text, why it has none, its name, its label, and the object that it is, empty where it is none."""

    text: bytes | None
    fault: str | None
    name: str | None
    label: str | None
    document: dict[str, Any]


def _json_rows(uri: str, config: SourceConfig, columns: Sequence[Column]) -> Iterator[_Rows]:
    rows: list[_JsonRow] = []
    seen: set[str] = set()
    is_any, row = False, 0
    for number, line in enumerate(json_lines(uri, config.max_image_bytes)):
        read = _json_row(line, config, seen)
        if config.id is not None and read.name is None:
            raise SourceError(
                f"{uri}, line {number + 1}: no {config.id!r}, which is to name the row (source.id); leave source.id out"
            )
        rows.append(read)
        if len(rows) == BATCH_ROWS:
            is_any = is_any or any(each.text is not None for each in rows)
            yield _columns(rows, config, carried_fields([each.document for each in rows], columns, uri, row))
            rows, row = [], number + 1
    if not is_any and not any(each.text is not None for each in rows):
        raise SourceError(
            f"{uri} has no line with a field {config.text!r} of texts; there are {', '.join(sorted(seen)) or 'none'}"
        )
    if rows:
        yield _columns(rows, config, carried_fields([each.document for each in rows], columns, uri, row))


def _columns(rows: list[_JsonRow], config: SourceConfig, values: list[pa.Array]) -> _Rows:
    texts, faults, names, labels, _ = zip(*rows, strict=True)
    return _Rows(
        pa.array(texts, pa.large_binary()),
        pa.array(faults, pa.string()),
        None if config.id is None else pa.array(names, pa.string()),
        pa.array(labels, pa.string()),
        values,
    )


def _json_row(line: bytes, config: SourceConfig, seen: set[str]) -> _JsonRow:
    assert config.text is not None
    try:
        document = read_object(line, config.encoding)
    except (ValueError, RecursionError) as error:
        fault = f"{ImageErrorCode.CORRUPT}: a line that is not JSON: {' '.join(str(error).split())[:200]}"
        return _JsonRow(None, fault, None, None, {})
    seen.update(list(document)[:32] if len(seen) < 32 else ())
    text = document.get(config.text)
    try:
        name = None if config.id is None else _scalar(document.get(config.id))
        label = None if config.labels in ("none", "folder") else _scalar(document.get(config.labels))
    except SourceError as error:
        return _JsonRow(None, f"{ImageErrorCode.CORRUPT}: {error}", None, None, document)
    if text is not None and not isinstance(text, str):
        fault = f"{ImageErrorCode.UNSUPPORTED}: {config.text!r} holds a {type(text).__name__}, expected a text"
        return _JsonRow(None, fault, name, label, document)
    # Half of a surrogate pair, which JSON can spell, is no text; it fails where texts are decoded.
    return _JsonRow(None if text is None else text.encode("utf-8", "surrogatepass"), None, name, label, document)


def _scalar(value: Any) -> str | None:
    return label_text(value) if isinstance(value, (str, int, float, bool)) else None
