"""Parquet files with a column of image bytes, Hugging Face's among them."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tlray.columns.column import Column
from tlray.columns.values import UnfitError, converted
from tlray.config import SourceConfig
from tlray.errors import ImageError, ImageErrorCode, ObjectNotFoundError, SourceError
from tlray.lake.image.formats import identify, known_but_not_read
from tlray.lake.source.containers.fetched_image import FetchedImage
from tlray.lake.source.label_text import label_texts
from tlray.lake.source.listing.manifest import URI_COLUMNS
from tlray.lake.storage.open import open_store
from tlray.lake.storage.store import READ_BUFFER_BYTES

_BATCH_ROWS = 4
"""Rows that are decoded at once. A file's own figures cannot tell how much memory they take, as a picture that comes often is
kept once and its rows count as next to nothing; to decode one row at a time would take three times as long for tiny images."""

_FIRST_IMAGES = 16


def parquet_members(uri: str, etag: str | None, config: SourceConfig, columns: Sequence[Column] = ()) -> Iterator[FetchedImage]:
    """Stream the images of a Parquet file; those of one without the column of labels, or one that travels, have none.

    See `tlray.lake.source.containers.members.read_members`.
    """
    store = open_store(uri)
    info = store.stat(uri)
    if info is None:
        raise ObjectNotFoundError(f"{uri} does not exist")
    etag = etag or info.etag
    rows = 0
    with store.open(uri, if_match=etag) as stream:
        try:
            file = pq.ParquetFile(stream, buffer_size=READ_BUFFER_BYTES, pre_buffer=False)
            image_column = _image_column(file.schema_arrow, config, uri)
            labels = _label_column(file.schema_arrow, config)
            for label, image, values in _rows(file, image_column, labels, columns):
                yield FetchedImage(f"{uri}#{rows}", etag, label, _data(image, config.max_image_bytes), values)
                rows += 1
        except (pa.ArrowException, OSError) as error:
            said = f"not a whole Parquet file: {' '.join(str(error).split())}"
            yield FetchedImage(uri, etag, None, ImageError(ImageErrorCode.CORRUPT, said))
            return
        except SourceError as error:
            yield FetchedImage(uri, etag, None, ImageError(ImageErrorCode.UNSUPPORTED, str(error)))
            return
    if not rows:
        yield FetchedImage(uri, etag, None, ImageError(ImageErrorCode.NO_IMAGES, "a Parquet file without rows"))


def read_schema(uri: str) -> pa.Schema:
    """The schema of a Parquet file, from its footer.

    Raises:
        SourceError: it is not a Parquet file.
    """
    with open_store(uri).open(uri) as stream:
        try:
            return pq.read_schema(stream)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{uri} cannot be read as Parquet: {' '.join(str(error).split())}") from error


def check_image_column(schema: pa.Schema, config: SourceConfig, uri: str) -> None:
    """Refuse a Parquet file that has no column of image bytes, or several of which none is named.

    Raises:
        SourceError: that is so.
    """
    _image_column(schema, config, uri)


def check_label_column(schema: pa.Schema, config: SourceConfig, uri: str) -> None:
    """Refuse a Parquet file that has no column of the labels that are asked for.

    Raises:
        SourceError: that is so, or the column holds lists or structs.
    """
    if config.labels != "none" and _label_column(schema, config) is None:
        raise SourceError(f"{uri} has no column {config.labels!r} of labels; it has {_described(schema)}")


def holds_images(uri: str, column: str | None) -> bool:
    """Whether a Parquet file holds images, and is not a manifest: one may have bytes of another kind (a hash, a vector).

    Args:
        uri: of the file.
        column: the only one that counts; None for any.

    Raises:
        SourceError: it is not a Parquet file.
    """
    schema = read_schema(uri)
    candidates = [name for name in _image_columns(schema) if column in (None, name)]
    has_names = any(field.name in URI_COLUMNS and not pa.types.is_nested(field.type) for field in schema)
    if not candidates or not has_names or column is not None or "image" in candidates:
        return bool(candidates)
    return any(_is_image_struct(schema.field(name).type) or _begins_with_an_image(uri, name) for name in candidates)


def _begins_with_an_image(uri: str, column: str) -> bool:
    with open_store(uri).open(uri) as stream:
        try:
            file = pq.ParquetFile(stream, buffer_size=READ_BUFFER_BYTES, pre_buffer=False)
            values = [image.as_py() or b"" for _, image, _ in islice(_rows(file, column, None), _FIRST_IMAGES)]
        except (pa.ArrowException, OSError):
            return True  # the run says what is wrong with it
    return any(identify(data) or known_but_not_read(data) for data in values)


def _rows(
    file: pq.ParquetFile, image_column: str, labels: str | None, columns: Sequence[Column] = ()
) -> Iterator[tuple[str | None, pa.Scalar, Mapping[str, Any]]]:
    """Label, image bytes and the values of columns that travel, of each row.

    Raises:
        pa.ArrowInvalid: a column has not as many rows as the footer says, so that some would be lost, or get another's label.
    """
    in_struct = _is_image_struct(file.schema_arrow.field(image_column).type)
    column = f"{image_column}.bytes" if in_struct else image_column
    for group in range(file.num_row_groups):
        rows, position = file.metadata.row_group(group).num_rows, 0
        texts: pa.Array | pa.ChunkedArray = pa.nulls(rows, pa.string())
        if labels:
            texts = label_texts(file.read_row_group(group, [labels], use_threads=False)[labels])
        values = _values(file, group, columns)
        for batch in file.iter_batches(_BATCH_ROWS, [group], [column], use_threads=False):
            for image in pc.struct_field(batch[image_column], "bytes") if in_struct else batch[image_column]:
                if position >= len(texts):
                    break
                yield texts[position].as_py(), image, values[position] if values else {}
                position += 1
        if position != rows or len(texts) != rows:
            raise pa.ArrowInvalid(f"{position} images and {len(texts)} labels in row group {group}, {rows} rows by the footer")


def _values(file: pq.ParquetFile, group: int, columns: Sequence[Column]) -> list[dict[str, Any]]:
    """The values of columns that travel, of each row of a row group; as they are where some do not fit the column's type.

    Raises:
        pa.ArrowInvalid: a column has not as many rows as the footer says.
    """
    there = [column for column in columns if column.name in file.schema_arrow.names]
    if not there:
        return []
    rows = file.read_row_group(group, [column.name for column in there], use_threads=False)
    if len(rows) != file.metadata.row_group(group).num_rows:
        raise pa.ArrowInvalid(f"{len(rows)} values in row group {group}, not as many as the footer says")
    found = {}
    for column in there:
        try:
            found[column.name] = converted(rows[column.name], column).to_pylist()
        except UnfitError:
            found[column.name] = rows[column.name].to_pylist()
    return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]


def _image_columns(schema: pa.Schema) -> list[str]:
    """The columns that can hold images: binary, or a struct with binary `bytes` (Hugging Face's image type)."""
    return [field.name for field in schema if _is_binary(field.type) or _is_image_struct(field.type)]


def _image_column(schema: pa.Schema, config: SourceConfig, uri: str) -> str:
    found = _image_columns(schema)
    if config.column is not None:
        if found.count(config.column) != 1:
            count = found.count(config.column) or "no"
            raise SourceError(f"{uri} has {count} column {config.column!r} of image bytes; it has {_described(schema)}")
        return config.column
    if not found:
        raise SourceError(f"{uri} has no column of image bytes; it has {_described(schema)}")
    if len(found) > 1 and found.count("image") != 1:
        raise SourceError(f"{uri} has several columns of bytes ({', '.join(found)}); say which with source.column")
    return "image" if "image" in found else found[0]


def _label_column(schema: pa.Schema, config: SourceConfig) -> str | None:
    name = config.labels
    if name == "none" or schema.names.count(name) != 1 or pa.types.is_nested(schema.field(name).type):
        return None
    return name


def _data(image: pa.Scalar, max_bytes: int) -> bytes | ImageError:
    data = image.as_buffer()
    if data is None:
        return ImageError(ImageErrorCode.EMPTY, "null instead of bytes")
    if data.size > max_bytes:
        return ImageError(ImageErrorCode.TOO_LARGE, f"{data.size} bytes, more than max_image_bytes {max_bytes}")
    return bytes(data)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_image_struct(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind)) and kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
