"""The entries of a tar file that are of use to a source, as they come; those that belong together are neighbours."""

import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Self

from tlray.config import SourceConfig
from tlray.errors import ImageError, ImageErrorCode
from tlray.lake.source.containers.json_fields import JSON_BYTES, is_json
from tlray.lake.source.listing.names import IMAGE_SUFFIXES
from tlray.lake.storage.store import READ_BUFFER_BYTES
from tlray.lake.storage.uri import printable

_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
"""A sample's key and the extension, parted as WebDataset parts them."""


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
class Entry:
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


class Entries:
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

    def __iter__(self) -> Iterator[Entry]:
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
            yield Entry("", "", "", True, ImageError(code, f"not a whole tar file: {error}"))

    def _entry(self, archive: tarfile.TarFile, info: tarfile.TarInfo) -> Entry | None:
        parts = _NAME.fullmatch(info.name)
        if parts is None or info.isdir():
            return None
        if self._extensions is not None:
            self._extensions[printable(parts[2])] += 1
        is_image = _is_item(info.name, parts[2], self._config.text)
        has_label = label_field(self._config.labels, parts[2]) is not None and info.size <= JSON_BYTES
        has_fields = self._wants_json and is_json(parts[2])
        if not (is_image or has_label or has_fields):
            return None
        is_read = self._extensions is None or not is_image
        most = self._config.max_image_bytes if is_image else JSON_BYTES
        data = _data(archive, info, most) if is_read else b""
        return Entry(parts[1], printable(info.name), parts[2], is_image, data)


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


def neighbours(entries: Iterator[Entry], max_bytes: int) -> Iterator[list[Entry]]:
    """Neighbours of one key. A key that goes on for more than `max_bytes` is cut: memory before labels."""
    group: list[Entry] = []
    size_bytes = 0
    for entry in entries:
        if group and (entry.key != group[0].key or size_bytes > max_bytes):
            yield group
            group, size_bytes = [], 0
        group.append(entry)
        size_bytes += len(entry.data) if isinstance(entry.data, bytes) else 0
    if group:
        yield group


def label_field(labels: str, extension: str) -> str | None:
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
