"""Stores of sources alone: they refuse to be written to, in one line."""

from collections.abc import Iterable
from typing import NoReturn

from tlray.errors import StoreUnfitError

READ_ONLY = ("https", "http", "gs", "az", "hf")
"""Schemes of places that hold sources, and no table, index, model or other result."""


def refuse_to_write(uri: str) -> NoReturn:
    """Say that nothing is written there.

    Raises:
        StoreUnfitError: always.
    """
    raise StoreUnfitError(
        f"{uri}: {uri.partition(':')[0]}:// holds sources, and is only read; for a table, index, model or other result "
        "expected s3://bucket/key or a local path"
    )


class ReadOnlyStore:
    """The methods of a store (`tlray.lake.storage.store.Store`) that write, for one that does not."""

    def write(self, uri: str, data: bytes | memoryview, *, if_absent: bool = False, if_match: str | None = None) -> bool:  # noqa: ARG002
        """Refuse to write, as nothing can be written here.

        Raises:
            StoreUnfitError: always.
        """
        refuse_to_write(uri)

    def delete(self, uris: Iterable[str]) -> None:
        """Refuse to delete, where anything is named.

        Raises:
            StoreUnfitError: something is.
        """
        for uri in uris:
            refuse_to_write(uri)
