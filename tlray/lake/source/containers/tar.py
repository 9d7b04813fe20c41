"""Tar shards in WebDataset's manner: neighbours of one key are an image, or a text, and what is known of it.

A name's key is all up to its first dot, and the rest its extension (https://github.com/webdataset/webdataset): `a/1.jpg`,
`a/1.cls` and `a/1.json` belong together, as do `a/2.input.jpg` and `a/2.outputs.txt`. Labels are asked for by an extension
(`cls`, `outputs.txt`) whose text they are, or by a field of a JSON object (`json.label`, `json.meta.class`, `info.json.label`).
"""

import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Self

from tlray.columns.column import Column
from tlray.config import SourceConfig
from tlray.errors import ImageError, ImageErrorCode, SourceError
from tlray.lake.source.containers.fetched_image import FetchedImage
from tlray.lake.source.containers.json_fields import JSON_BYTES, UNREADABLE, field_values, find, is_json, read_document
from tlray.lake.source.label_text import label_text
from tlray.lake.source.listing.names import IMAGE_SUFFIXES
from tlray.lake.storage.open import open_store
from tlray.lake.storage.store import READ_BUFFER_BYTES
from tlray.lake.storage.uri import printable

_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
"""Key and extension."""


def tar_members(uri: str, etag: str | None, config: SourceConfig, columns: Sequence[Column] = ()) -> Iterator[FetchedImage]:
    """Stream the images of a tar file; see `tlray.lake.source.containers.members.read_members`."""
    stream, etag = open_store(uri).stream(uri, if_match=etag)
    taken: set[str] = set()
    entries = _Entries(stream, config, wants_json=bool(columns))
    is_empty = True
    with stream:
        for group in _groups(iter(entries), config.max_image_bytes):
            label = next((label for entry in group if not entry.is_image and (label := _label(entry, config.labels))), None)
            values = field_values(_documents(group), columns) if columns else {}
            for entry in group:
                if entry.is_image:
                    is_empty = False
                    if config.labels == "folder":
                        label = _folder(entry.name)
                    name = f"{uri}#{_unique(entry.name, taken)}" if entry.name else uri
                    yield FetchedImage(name, etag, label, entry.data, values)
    if is_empty:
        what = "an image" if config.text is None else f"a text (*.{config.text})"
        detail = f"a tar file of {entries.count} entries, none of which is {what} by its name"
        yield FetchedImage(uri, etag, None, ImageError(ImageErrorCode.NO_IMAGES, detail))


@dataclass
class TarLabels:
    """What the first images of a tar file have in the way of labels.

    Attributes:
        images: how many were looked at.
        labelled: those that have the label that was asked for.
        extensions: how often each extension is there, those of labels and images included.
    """

    images: int = 0
    labelled: int = 0
    extensions: Counter[str] = field(default_factory=Counter)


def look_for_labels(uri: str, config: SourceConfig, images: int) -> TarLabels:
    """Look for labels among the first images of a tar file; stops at the first one.

    Args:
        uri: of the file.
        config: `labels` says what to look for.
        images: most to look at.

    Raises:
        SourceError: the label's field holds a list or an object.
        StorageError: the store failed.
    """
    found = TarLabels()
    stream, _ = open_store(uri).stream(uri)
    with stream:
        entries = _Entries(stream, config, found.extensions)
        for group in _groups(iter(entries), config.max_image_bytes):
            for entry in group:
                found.images += entry.is_image and bool(entry.name)
                if config.labels == "folder":
                    found.labelled += _folder(entry.name) is not None
                elif not entry.is_image:
                    found.labelled += _label(entry, config.labels, uri) is not None
            if found.labelled or found.images >= images:
                break
    return found


def look_for_fields(uri: str, config: SourceConfig, images: int) -> list[dict[str, Any]]:
    """The JSON documents of the first images of a tar file, several of one image as one.

    Args:
        uri: of the file.
        config: of the source.
        images: most to look at.

    Raises:
        StorageError: the store failed.
    """
    found: list[dict[str, Any]] = []
    seen = 0
    stream, _ = open_store(uri).stream(uri)
    with stream:
        for group in _groups(iter(_Entries(stream, config, Counter(), wants_json=True)), config.max_image_bytes):
            seen += sum(entry.is_image for entry in group)
            documents = [one for one in _documents(group) if isinstance(one, dict)]
            if documents:
                found.append({name: value for one in reversed(documents) for name, value in one.items()})
            if seen >= images:
                break
    return found


class _StrictTarInfo(tarfile.TarInfo):
    """A header that is believed to be the archive's end only where an end marker is.

    `tarfile` takes a damaged header for the end, and so does it the end of a file that was cut between two members; both would
    lose images without a word. It ends at the first marker as well, after which `cat a.tar b.tar` has a second archive.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            header = super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            kind = type(error).__name__
            if kind == "EOFHeaderError":  # a block of zeros
                archive.has_end = True  # type: ignore[attr-defined]
                raise
            if kind == "EmptyHeaderError" and (archive.offset == 0 or getattr(archive, "has_end", False)):
                raise
            message = "unexpected end of data: there is no end marker" if kind == "EmptyHeaderError" else str(error)
            raise tarfile.ReadError(message) from error
        archive.has_end = False  # type: ignore[attr-defined]
        return header


@dataclass(slots=True)
class _Entry:
    """A tar entry of use: an image, or (`is_image` false) a text with the label of its key, or a JSON document of it.

    Attributes:
        key: what neighbours that belong together share.
        name: of the entry; empty at the breaking point of a damaged archive.
        extension: all after the key.
        is_image: whether it is an item of the source, an image or a text, by its name.
        data: its bytes.
    """

    key: str
    name: str
    extension: str
    is_image: bool
    data: bytes | ImageError


class _Entries:
    """The entries of use in an archive; at its breaking point one without name.

    Args:
        stream: of the archive.
        config: of the source.
        extensions: counts those of all entries, where it is given; images' bytes are then left unread.
        wants_json: whether JSON documents are of use, whatever the labels are.

    Attributes:
        count: entries that were passed, of whatever kind.
    """

    def __init__(
        self, stream: BinaryIO, config: SourceConfig, extensions: Counter[str] | None = None, *, wants_json: bool = False
    ) -> None:
        self._stream, self._config, self._extensions, self._wants_json = stream, config, extensions, wants_json
        self.count = 0

    def __iter__(self) -> Iterator[_Entry]:
        try:
            with tarfile.open(
                fileobj=self._stream, mode="r|*", bufsize=READ_BUFFER_BYTES, tarinfo=_StrictTarInfo, ignore_zeros=True
            ) as archive:
                for info in archive:
                    archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                    self.count += 1
                    if entry := self._entry(archive, info):
                        yield entry
        except (tarfile.TarError, EOFError) as error:
            is_cut = "end of data" in str(error) or "truncated" in str(error)
            code = ImageErrorCode.TRUNCATED if is_cut else ImageErrorCode.CORRUPT
            yield _Entry("", "", "", True, ImageError(code, f"not a whole tar file: {error}"))

    def _entry(self, archive: tarfile.TarFile, info: tarfile.TarInfo) -> _Entry | None:
        parts = _NAME.fullmatch(info.name)
        if parts is None or info.isdir():
            return None
        if self._extensions is not None:
            self._extensions[printable(parts[2])] += 1
        is_image = _is_item(info.name, parts[2], self._config.text)
        has_label = _json_field(self._config.labels, parts[2]) is not None and info.size <= JSON_BYTES
        has_fields = self._wants_json and is_json(parts[2])
        if not (is_image or has_label or has_fields):
            return None
        is_read = self._extensions is None or not is_image
        most = self._config.max_image_bytes if is_image else JSON_BYTES
        data = _data(archive, info, most) if is_read else b""
        return _Entry(parts[1], printable(info.name), parts[2], is_image, data)


def _is_item(name: str, extension: str, text: str | None) -> bool:
    if text is None:
        return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES
    return extension.lower() == text.lower()


def _data(archive: tarfile.TarFile, info: tarfile.TarInfo, max_bytes: int) -> bytes | ImageError:
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


def _folder(name: str) -> str | None:
    """The name of the folder, inside the archive, that an entry is in."""
    return PurePosixPath(name).parent.name or None


def _documents(group: list[_Entry]) -> list[Any]:
    """The JSON documents among neighbours of one key."""
    texts = [entry for entry in group if not entry.is_image and is_json(entry.extension)]
    return [read_document(entry.data) if isinstance(entry.data, bytes) else UNREADABLE for entry in texts]


def _json_field(labels: str, extension: str) -> str | None:
    """The field of a JSON object that holds the labels in files of an extension.

    Returns:
        Empty where the label is the file's whole text, None where such files hold no labels.
    """
    wanted, found = labels.lower(), extension.lower()
    if labels in ("none", "folder"):
        return None
    if wanted == found:
        return ""
    is_json = found == "json" or found.endswith(".json")
    return labels[len(found) + 1 :] if is_json and wanted.startswith(f"{found}.") else None


def _label(entry: _Entry, labels: str, uri: str | None = None) -> str | None:
    """The label in an entry's text, or in one field of its JSON object; None where it is not there.

    Raises:
        SourceError: `uri` is given, and the field holds a list or an object.
    """
    name = _json_field(labels, entry.extension)
    if isinstance(entry.data, ImageError) or name is None:
        return None
    if not name:
        return label_text(entry.data.decode(errors="replace").strip())
    document = read_document(entry.data)
    if document is UNREADABLE:
        return None
    value = find(document, name)
    if isinstance(value, (list, dict)):
        if uri is not None:
            kind = "a list" if isinstance(value, list) else "an object"
            raise SourceError(
                f"{uri}: in {entry.name}, {name!r} holds {kind}, expected one label; name what is in it, as {labels}.<field>"
            )
        return None
    return label_text(value)


def _unique(name: str, taken: set[str]) -> str:
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name}#{count}"
    taken.add(unique)
    return unique
