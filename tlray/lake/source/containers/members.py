"""Files that hold many images: their members as they are read, one after the other, in bounded memory.

A member's URI is its file's, `#`, and its name (tar) or row index (Parquet); its etag is the file's, so a file that is
replaced makes all its members new. Where a tar repeats a name, the later ones get `#2`, `#3`: every URI is there once.
A file that turns out broken yields what came before, and then one member of its own URI with the error.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq

from tlray.config import SourceConfig
from tlray.errors import ImageError, ImageErrorCode, ObjectNotFoundError, SourceError
from tlray.lake.source.label_text import label_text, label_texts
from tlray.lake.storage.open import open_store
from tlray.lake.storage.store import READ_BUFFER_BYTES
from tlray.lake.storage.uri import printable

ContainerKind = Literal["webdataset", "parquet"]

SUFFIXES: dict[ContainerKind, str] = {"webdataset": ".tar", "parquet": ".parquet"}
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".dib", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jxl", ".heic", ".heif",
})  # fmt: skip
"""Lower-case endings of names that mean an image, those included that will only get a row that says why not."""

_LABEL_BYTES = 2**20
_BATCH_BYTES = 32 * 2**20
_WEBDATASET_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
"""Key and extension: the name up to its first dot, and the rest (https://github.com/webdataset/webdataset)."""


@dataclass(frozen=True, slots=True)
class FetchedImage:
    """An image's bytes, or why there are none; one that is in a container or a file of its own."""

    uri: str
    etag: str
    label: str | None
    data: bytes | ImageError


def read_members(kind: ContainerKind, uri: str, etag: str | None, config: SourceConfig) -> Iterator[FetchedImage]:
    """The images of a container, streamed.

    Args:
        kind: of the container.
        uri: of the file.
        etag: of the file as it was listed; None takes it as it is.
        config: of the source (labels, column, limits).

    Raises:
        ObjectNotFoundError: the file is not there.
        ObjectChangedError: the file is not the one that was listed, or was replaced while it was read.
        SourceError: the file has no such column.
        StorageError: the store failed.
    """
    return _tar_members(uri, etag, config) if kind == "webdataset" else _parquet_members(uri, etag, config)


class _StrictTarInfo(tarfile.TarInfo):
    """`tarfile` takes a damaged header after the first for the archive's end, and says nothing; this one does."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if type(error).__name__ in ("EOFHeaderError", "EmptyHeaderError"):  # the end, with its marker or without
                raise
            raise tarfile.ReadError(str(error)) from error


@dataclass(slots=True)
class _Entry:
    """A tar entry of use: an image, or (`is_image` false) the text with the label of its key."""

    key: str
    name: str
    is_image: bool
    data: bytes | ImageError


def _tar_members(uri: str, etag: str | None, config: SourceConfig) -> Iterator[FetchedImage]:
    stream, etag = open_store(uri).stream(uri, if_match=etag)
    taken: set[str] = set()
    with stream:
        for group in _groups(_tar_entries(stream, config), config.max_image_bytes):
            label = next((_label(entry.data, config.labels) for entry in group if not entry.is_image), None)
            for entry in group:
                if entry.is_image:
                    if config.labels == "folder":
                        label = PurePosixPath(entry.name).parent.name or None
                    yield FetchedImage(f"{uri}#{_unique(entry.name, taken)}" if entry.name else uri, etag, label, entry.data)


def _tar_entries(stream: BinaryIO, config: SourceConfig) -> Iterator[_Entry]:
    """What the archive has of use; at its breaking point an entry without name."""
    label_extension = None if config.labels in ("none", "folder") else config.labels.partition(".")[0].lower()
    try:
        with tarfile.open(fileobj=stream, mode="r|*", bufsize=READ_BUFFER_BYTES, tarinfo=_StrictTarInfo) as archive:
            for info in archive:
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                parts = _WEBDATASET_NAME.fullmatch(info.name)
                if parts is None or info.isdir():
                    continue
                is_image = PurePosixPath(info.name).suffix.lower() in IMAGE_SUFFIXES
                if is_image or (parts[2].lower() == label_extension and info.size <= _LABEL_BYTES):
                    yield _Entry(parts[1], printable(info.name), is_image, _tar_data(archive, info, config.max_image_bytes))
    except (tarfile.TarError, EOFError) as error:
        is_cut = "end of data" in str(error) or "truncated" in str(error)
        code = ImageErrorCode.TRUNCATED if is_cut else ImageErrorCode.CORRUPT
        yield _Entry("", "", True, ImageError(code, f"not a whole tar file: {error}"))


def _tar_data(archive: tarfile.TarFile, info: tarfile.TarInfo, max_bytes: int) -> bytes | ImageError:
    if info.size > max_bytes:
        return ImageError(ImageErrorCode.TOO_LARGE, f"{info.size} bytes, more than max_image_bytes {max_bytes}")
    if not info.isreg():
        return ImageError(ImageErrorCode.UNSUPPORTED, f"a link to {printable(info.linkname)}, not a file")
    file = archive.extractfile(info)
    assert file is not None  # it is a regular file
    return file.read()


def _groups(entries: Iterator[_Entry], max_bytes: int) -> Iterator[list[_Entry]]:
    """Neighbours of one key. A key that goes on for more than `max_bytes` is cut: memory before labels."""
    group: list[_Entry] = []
    size_bytes = 0
    for entry in entries:
        if group and (entry.key != group[0].key or size_bytes > max_bytes):
            yield group
            group, size_bytes = [], 0
        group.append(entry)
        size_bytes += len(entry.data) if isinstance(entry.data, bytes) else 0
    if group:
        yield group


def _label(data: bytes | ImageError, labels: str) -> str | None:
    """The label in a text, or in one field of a JSON object (`json.<field>`); None where it is not there."""
    if isinstance(data, ImageError):
        return None
    extension, _, field = labels.partition(".")
    text = data.decode(errors="replace").strip()
    if extension != "json" or not field:
        return label_text(text)
    try:
        value = json.loads(text)[field]
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return json.dumps(value) if isinstance(value, (list, dict)) else label_text(value)


def _unique(name: str, taken: set[str]) -> str:
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name}#{count}"
    taken.add(unique)
    return unique


def image_columns(schema: pa.Schema) -> list[str]:
    """The columns that can hold images: binary, or a struct with binary `bytes` (Hugging Face's image type)."""
    return [field.name for field in schema if _is_binary(field.type) or _is_image_struct(field.type)]


def read_schema(uri: str) -> pa.Schema:
    """The schema of a Parquet file, from its footer.

    Raises:
        SourceError: it is not a Parquet file.
    """
    with open_store(uri).open(uri) as stream:
        try:
            return pq.read_schema(stream)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{uri} cannot be read as Parquet: {error}") from error


def check_columns(uri: str, config: SourceConfig) -> None:
    """Look whether a Parquet file has the columns of images and labels that the config asks for.

    Raises:
        SourceError: it has not.
    """
    schema = read_schema(uri)
    _image_column(schema, config, uri)
    _label_column(schema, config, uri)


def _image_column(schema: pa.Schema, config: SourceConfig, uri: str) -> str:
    found = image_columns(schema)
    if config.column is not None:
        if config.column not in found:
            raise SourceError(f"{uri} has no column {config.column!r} of image bytes; it has {_described(schema)}")
        return config.column
    if not found:
        raise SourceError(f"{uri} has no column of image bytes; it has {_described(schema)}")
    if len(found) > 1 and "image" not in found:
        raise SourceError(f"{uri} has several columns of bytes ({', '.join(found)}); say which with source.column")
    return "image" if "image" in found else found[0]


def _label_column(schema: pa.Schema, config: SourceConfig, uri: str) -> str | None:
    if config.labels == "none":
        return None
    if config.labels not in schema.names or pa.types.is_nested(schema.field(config.labels).type):
        raise SourceError(f"{uri} has no column {config.labels!r} of labels; it has {_described(schema)}")
    return config.labels


def _parquet_members(uri: str, etag: str | None, config: SourceConfig) -> Iterator[FetchedImage]:
    store = open_store(uri)
    info = store.stat(uri)
    if info is None:
        raise ObjectNotFoundError(f"{uri} does not exist")
    etag = etag or info.etag
    with store.open(uri, if_match=etag) as stream:
        try:
            yield from _parquet_rows(pq.ParquetFile(stream, buffer_size=READ_BUFFER_BYTES, pre_buffer=False), uri, etag, config)
        except (pa.ArrowException, OSError) as error:
            yield FetchedImage(uri, etag, None, ImageError(ImageErrorCode.CORRUPT, f"not a whole Parquet file: {error}"))


def _parquet_rows(file: pq.ParquetFile, uri: str, etag: str, config: SourceConfig) -> Iterator[FetchedImage]:
    image_column = _image_column(file.schema_arrow, config, uri)
    labels = _label_column(file.schema_arrow, config, uri)
    in_struct = _is_image_struct(file.schema_arrow.field(image_column).type)
    columns = [f"{image_column}.bytes" if in_struct else image_column, *([labels] if labels else [])]
    row = 0
    for group in range(file.num_row_groups):
        metadata = file.metadata.row_group(group)
        batch_rows = max(1, min(1024, _BATCH_BYTES * metadata.num_rows // max(1, metadata.total_byte_size)))
        for batch in file.iter_batches(batch_rows, [group], columns, use_threads=False):
            images = batch[image_column].field("bytes") if in_struct else batch[image_column]
            texts = label_texts(batch[labels]) if labels else pa.nulls(len(batch), pa.string())
            for image, text in zip(images, texts, strict=True):
                yield FetchedImage(f"{uri}#{row}", etag, text.as_py(), _parquet_data(image, config.max_image_bytes))
                row += 1


def _parquet_data(image: pa.Scalar, max_bytes: int) -> bytes | ImageError:
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
