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
    ConfigError,
    IndexCorruptError,
    IndexMissingError,
    ObjectNotFoundError,
    first_line,
)
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import join
from tlray.lake.table.table import RECIPE_NAME
from tlray.search.neighbours.exact import Metric
from tlray.search.neighbours.parameters import Parameters, Quality, Strict
from tlray.search.versions.files import FileKind, IndexFile

FORMAT_0_1, FORMAT = 4, 5
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
        ef_construction: candidates that a node of its graph is linked from, as asked for; None for FAISS's own.
        rows: live rows.
        nodes: distinct vectors of the live rows; FAISS holds each once (`tlray.search.rows.copies`).
        zero_rows: live rows whose vector is all zeros, where the metric is cosine; FAISS holds none of them.
        dead: vectors that no live row has any more and that are still inside, never shown.
        next_id: ids of rows are given once, from 0 up.
        next_node: likewise those of vectors.
        base_next_node: nodes from here on came after the FAISS file was written; their vectors are in the delta file.
        zeros_are_apart: False where FAISS may hold all-zero vectors although the metric is cosine, as version 0.1 made it.
        built: what it was when it was built as a whole.
        recall_target: what was asked for.
        parameters: of a search.
        quality: what was measured.
        unreached: nodes in the FAISS file that its graph does not lead to; see `tlray.search.neighbours.unreached`.
        measured_version: the version that it was measured on; later ones differ from it by their delta.
        seconds: time by stage of the run that made this version.
        files: by kind.
        made_with: versions of the packages.
    """

    format: Literal[5] = 5
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
    ef_construction: int | None = None
    rows: int
    nodes: int
    zero_rows: int = 0
    dead: int
    next_id: int
    next_node: int
    base_next_node: int
    zeros_are_apart: bool = True
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
        """Size of all files of the version."""
        return sum(file.size_bytes for file in self.files.values())

    def to_json(self) -> bytes:
        """The document with its own hash as the last field."""
        document = self.model_dump(mode="json")
        return json.dumps(document | {"sha256": _digest(document)}, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes, uri: str) -> "Card":
        """Read it back, also as version 0.1 wrote it; a key that was added since takes its default.

        Raises:
            IndexCorruptError: not one byte of it may differ from what was written.
            ConfigError: a later version of tlray wrote it.
        """
        try:
            document: dict[str, Any] = json.loads(data)
            digest = document.pop("sha256")
            if json.dumps(document | {"sha256": digest}, indent=1).encode() != data or digest != _digest(document):
                raise IndexCorruptError(
                    f"{uri} was changed: its contents do not have the sha256 in it; restore it or build anew"
                )
            if document["format"] not in (FORMAT_0_1, FORMAT):
                raise ConfigError(
                    f"{uri} is a card of format {document['format']}, made with {document.get('made_with')}; this version of "
                    f"tlray reads formats {FORMAT_0_1} and {FORMAT}: install a later one, or build another index elsewhere"
                )
            return cls.model_validate(_from_0_1(document) if document["format"] == FORMAT_0_1 else document)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise IndexCorruptError(f"{uri} is not an index's card: {said}; build the index anew elsewhere") from error
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise IndexCorruptError(
                f"{uri} is not an index's card: {first_line(error)}; build the index anew elsewhere"
            ) from error


def _from_0_1(document: dict[str, Any]) -> dict[str, Any]:
    """A card of version 0.1, in whose indexes each row had a node of its own, with the keys of today's."""
    kept = {key: value for key, value in document.items() if key != "base_next_id"}
    return kept | {
        "format": FORMAT,
        "nodes": document["rows"],
        "next_node": document["next_id"],
        "base_next_node": document["base_next_id"],
        "zeros_are_apart": document["metric"] != "cosine",
    }


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
    """Read the card of one version of an index.

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
    """Whether there is a table at an index's place."""
    return open_store(uri).stat(join(uri, RECIPE_NAME)) is not None


def _advice(uri: str) -> str:
    if holds_table(uri):
        return f"this is a table; `tlray index --table {uri} --out ANOTHER_PLACE` makes an index of it"
    return "check the address"


def publish(index_uri: str, card: Card) -> None:
    """Make a version visible to those who open the index.

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
