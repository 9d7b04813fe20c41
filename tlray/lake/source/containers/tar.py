"""Tar shards in WebDataset's manner: neighbours of one key are an image, or a text, and what is known of it.

A name's key is all up to its first dot, and the rest its extension (https://github.com/webdataset/webdataset): `a/1.jpg`,
`a/1.cls` and `a/1.json` belong together, as do `a/2.input.jpg` and `a/2.outputs.txt`. Labels are asked for by an extension
(`cls`, `outputs.txt`) whose text they are, or by a field of a JSON object (`json.label`, `json.meta.class`, `info.json.label`).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from tlray.columns.column import Column
from tlray.config import SourceConfig
from tlray.errors import ImageError, ImageErrorCode, SourceError
from tlray.lake.source.containers.fetched_image import FetchedImage
from tlray.lake.source.containers.json_fields import UNREADABLE, field_values, find, is_json, read_document
from tlray.lake.source.containers.tar_entries import Entries, Entry, label_field, neighbours
from tlray.lake.source.label_text import label_text
from tlray.lake.storage.open import open_store


def tar_members(uri: str, etag: str | None, config: SourceConfig, columns: Sequence[Column] = ()) -> Iterator[FetchedImage]:
    """Stream the images of a tar file; see `tlray.lake.source.containers.members.read_members`."""
    stream, etag = open_store(uri).stream(uri, if_match=etag)
    taken: set[str] = set()
    entries = Entries(stream, config, wants_json=bool(columns))
    is_empty = True
    with stream:
        for group in neighbours(iter(entries), config.max_image_bytes):
            label, note = _label_of(group, config.labels)
            values = field_values(_documents(group), columns) if columns else {}
            for entry in group:
                if entry.is_image:
                    is_empty = False
                    if config.labels == "folder":
                        label = _folder(entry.name)
                    name = f"{uri}#{_unique(entry.name, taken)}" if entry.name else uri
                    yield FetchedImage(name, etag, label, entry.data, values, note)
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
        SourceError: the label's field holds a list or an object, or its text is not UTF-8.
        StorageError: the store failed.
    """
    found = TarLabels()
    stream, _ = open_store(uri).stream(uri)
    with stream:
        entries = Entries(stream, config, found.extensions)
        for group in neighbours(iter(entries), config.max_image_bytes):
            for entry in group:
                found.images += entry.is_image and bool(entry.name)
                if config.labels == "folder":
                    found.labelled += _folder(entry.name) is not None
                elif not entry.is_image:
                    try:
                        found.labelled += _label(entry, config.labels) is not None
                    except SourceError as error:
                        raise SourceError(f"{uri}: {error}") from error
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
        for group in neighbours(iter(Entries(stream, config, Counter(), wants_json=True)), config.max_image_bytes):
            seen += sum(entry.is_image for entry in group)
            documents = [one for one in _documents(group) if isinstance(one, dict)]
            if documents:
                found.append({name: value for one in reversed(documents) for name, value in one.items()})
            if seen >= images:
                break
    return found


def _folder(name: str) -> str | None:
    """The name of the folder, inside the archive, that an entry is in."""
    return PurePosixPath(name).parent.name or None


def _documents(group: list[Entry]) -> list[Any]:
    """The JSON documents among neighbours of one key."""
    texts = [entry for entry in group if not entry.is_image and is_json(entry.extension)]
    return [read_document(entry.data) if isinstance(entry.data, bytes) else UNREADABLE for entry in texts]


def _label_of(group: list[Entry], labels: str) -> tuple[str | None, str]:
    """The label of neighbours of one key, and what is to be said where something else is in its place."""
    note = ""
    for entry in group:
        try:
            label = None if entry.is_image else _label(entry, labels)
        except SourceError as error:
            note = f"{error}: no label"
        else:
            if label:
                return label, ""
    return None, note


def _label(entry: Entry, labels: str) -> str | None:
    """The label in an entry's text, or in one field of its JSON object; None where it is not there.

    Raises:
        SourceError: the field holds a list or an object, or the text is not UTF-8.
    """
    name = label_field(labels, entry.extension)
    if isinstance(entry.data, ImageError) or name is None:
        return None
    if not name:
        try:
            return label_text(entry.data.decode("utf-8-sig").strip())
        except UnicodeDecodeError as error:
            raise SourceError(f"{entry.name} is not UTF-8 ({entry.data[:40]!r}); save it as UTF-8") from error
    document = read_document(entry.data)
    if document is UNREADABLE:
        return None
    value = find(document, name)
    if isinstance(value, (list, dict)):
        kind = "a list" if isinstance(value, list) else "an object"
        raise SourceError(
            f"in {entry.name}, {name!r} holds {kind}, expected one label; name what is in it, as {labels}.<field>"
        )
    return label_text(value)


def _unique(name: str, taken: set[str]) -> str:
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name}#{count}"
    taken.add(unique)
    return unique
