"""Delete what is of no use any more: old versions, the files that only they name, and what killed builds left.

A build stores its files before the card that names them. A file without a card is therefore part of a build under way, or was
left by one that was killed; its age tells which.
"""

import time
from collections.abc import Iterable

from tlray.errors import IndexCorruptError, IndexMissingError
from tlray.lake.storage.open import open_store
from tlray.lake.storage.store import Store
from tlray.lake.storage.uri import join
from tlray.progress import say
from tlray.search.versions.card import card_uri, read_card, versions

RETENTION_SECONDS = 24 * 3600
"""A build stores its files when they are done, and publishes after tuning, measuring and storing the others: minutes, hours
where an index is large and its network slow."""


def prune(index_uri: str, keep: int) -> None:
    """Delete all but the newest versions and the files that only they name, and old files that no version names.

    Args:
        index_uri: of the index.
        keep: how many versions stay, for readers that are about to load one.
    """
    numbers = versions(index_uri)
    old, kept = numbers[:-keep], numbers[-keep:]
    try:
        needed = _named(index_uri, kept)
    except (IndexCorruptError, IndexMissingError) as error:
        say(f"{error}; no file is deleted")
        doomed: list[str] = []
    else:
        there = {uri for page in open_store(index_uri).list(join(index_uri, "files")) for uri in page["uri"].to_pylist()}
        replaced = _named_by_readable(index_uri, old)
        doomed = sorted(uri for uri in there - needed if uri in replaced or _is_old(open_store(index_uri), uri))
        left = len(set(doomed) - replaced)
        if left:
            say(f"{left} files of builds that did not end are deleted")
    store = open_store(index_uri)
    # Cards first: a reader then misses the version by name, not one of its files.
    store.delete(card_uri(index_uri, number) for number in old)
    store.delete(doomed)


def _named(index_uri: str, numbers: Iterable[int]) -> set[str]:
    """URIs of the files of some versions."""
    cards = [read_card(index_uri, number) for number in numbers]
    return {join(index_uri, "files", file.name) for card in cards for file in card.files.values()}


def _named_by_readable(index_uri: str, numbers: Iterable[int]) -> set[str]:
    """The files that those of some cards name which can be read; what a damaged card names goes when it is old."""
    found: set[str] = set()
    for number in numbers:
        try:
            found |= _named(index_uri, [number])
        except (IndexCorruptError, IndexMissingError) as error:
            say(f"{error}; its files are deleted once they are old")
    return found


def _is_old(store: Store, uri: str) -> bool:
    info = store.stat(uri)
    return info is not None and info.modified_seconds is not None and time.time() - info.modified_seconds > RETENTION_SECONDS
