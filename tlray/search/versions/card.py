"""An index's card and its files: what an index is, hashes of all of it, and versions that appear all at once.

::

    photos.index/
    ├── versions/00000000000000000001.json   the card of version 1; the newest number is the index
    └── files/<kind>-<sha256>                what cards name; never written twice

A version is published by putting its card if no card of that number is there yet: of two builders one wins, and a reader
sees a whole version or none. A card holds the sha256 of every file and of itself.
"""

import hashlib
import json
import re
from typing import Any, Literal

from pydantic import ValidationError

from tlray.errors import (
    ConcurrentWriteError,
    IndexCorruptError,
    IndexMissingError,
    ObjectNotFoundError,
    first_line,
)
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import join
from tlray.lake.table.table import RECIPE_NAME
from tlray.search.neighbours.metric import Metric
from tlray.search.neighbours.parameters import Parameters, Quality, Strict
from tlray.search.versions.files import FileKind, IndexFile

_CARD_NAME = re.compile(r".*/versions/(\d{20})\.json")


class Built(Strict):
    """What an index was when it was built as a whole.

    Attributes:
        rows: live rows.
        recall_at_10: as measured then; where the target is out of reach, updates are held against this.
        outlier_nearness: see `tlray.search.build.remeasure`; None without lists.
    """

    rows: int
    recall_at_10: float
    outlier_nearness: float | None


class Card(Strict):
    """What one version of an index is.

    Attributes:
        format: version of this document.
        version: number of this version.
        created: when, ISO 8601, UTC.
        table: URI of the table.
        table_id: of the table that was made there (`Table.id`).
        table_version: the version that the index shows.
        recipe_id: of the table.
        column: the embedding column.
        dimensions: of one vector.
        metric: what "near" means.
        factory: FAISS's factory string.
        reasons: why this one.
        rows: live rows.
        dead: removed rows whose vectors are still inside and never shown.
        next_id: ids are given once, from 0 up.
        base_next_id: ids from here on came after the FAISS file was written; their vectors are in the delta file.
        built: what it was when it was built as a whole.
        recall_target: what was asked for.
        parameters: of a search.
        quality: what was measured.
        unreached: ids of rows in the FAISS file that its graph does not lead to; see `tlray.search.neighbours.unreached`.
        measured_version: the version that it was measured on; later ones differ from it by their delta.
        seconds: time by stage of the run that made this version.
        files: by kind.
        made_with: versions of the packages.
    """

    format: Literal[4] = 4
    version: int
    created: str
    table: str
    table_id: str
    table_version: int
    recipe_id: str
    column: str
    dimensions: int
    metric: Metric
    factory: str
    reasons: tuple[str, ...]
    rows: int
    dead: int
    next_id: int
    base_next_id: int
    built: Built
    recall_target: float
    parameters: Parameters
    quality: Quality
    unreached: tuple[int, ...]
    measured_version: int
    seconds: dict[str, float]
    files: dict[FileKind, IndexFile]
    made_with: dict[str, str]

    @property
    def size_bytes(self) -> int:
        """Of all its files."""
        return sum(file.size_bytes for file in self.files.values())

    def to_json(self) -> bytes:
        """The document with its own hash as the last field."""
        document = self.model_dump(mode="json")
        return json.dumps(document | {"sha256": _digest(document)}, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes, uri: str) -> "Card":
        """Read it back.

        Raises:
            IndexCorruptError: not one byte of it may differ from what was written.
        """
        try:
            document: dict[str, Any] = json.loads(data)
            document.pop("sha256")
            card = cls.model_validate(document)
        except (ValueError, KeyError, AttributeError, TypeError, ValidationError) as error:
            raise IndexCorruptError(
                f"{uri} is not an index's card: {first_line(error)}; build the index anew elsewhere"
            ) from error
        if card.to_json() != data:
            raise IndexCorruptError(f"{uri} was changed: its contents do not have the sha256 in it; restore it or build anew")
        return card


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def versions(index_uri: str) -> list[int]:
    """Numbers of the versions that are there, in order."""
    found = []
    for page in open_store(index_uri).list(join(index_uri, "versions")):
        found += [int(match[1]) for uri in page["uri"].to_pylist() if (match := _CARD_NAME.fullmatch(uri))]
    return sorted(found)


def newest_version(index_uri: str) -> int | None:
    """The number of the newest version, or None where no index is."""
    return max(versions(index_uri), default=None)


def read_card(index_uri: str, version: int | None = None) -> Card:
    """The card of a version.

    Args:
        index_uri: of the index.
        version: default the newest.

    Raises:
        IndexMissingError: there is no index, or no such version.
        IndexCorruptError: the card is damaged.
    """
    number = newest_version(index_uri) if version is None else version
    if number is None:
        raise IndexMissingError(f"no index at {index_uri}; expected a folder that `tlray index` made: {_advice(index_uri)}")
    uri = card_uri(index_uri, number)
    try:
        data = open_store(uri).read(uri).data
    except ObjectNotFoundError as error:
        raise IndexMissingError(f"{index_uri} has no version {number}; it has {versions(index_uri)}") from error
    card = Card.from_json(data, uri)
    if card.version != number:
        raise IndexCorruptError(f"{uri} says that it is version {card.version}; restore the file or build anew")
    return card


def holds_table(uri: str) -> bool:
    """Whether a table is there."""
    return open_store(uri).stat(join(uri, RECIPE_NAME)) is not None


def _advice(uri: str) -> str:
    if holds_table(uri):
        return f"this is a table; `tlray index --table {uri} --out ANOTHER_PLACE` makes an index of it"
    return "check the address"


def publish(index_uri: str, card: Card) -> None:
    """Make a version visible.

    Raises:
        ConcurrentWriteError: somebody else published a version of that number.
    """
    uri = card_uri(index_uri, card.version)
    store, data = open_store(uri), card.to_json()
    # After a lost answer the card that is there may be this very one.
    if not store.write(uri, data, if_absent=True) and store.read(uri).data != data:
        raise ConcurrentWriteError(
            f"another run published version {card.version} of {index_uri} in the meantime; run the same command again"
        )


def card_uri(index_uri: str, version: int) -> str:
    """Where the card of a version is."""
    return join(index_uri, "versions", f"{version:020d}.json")
