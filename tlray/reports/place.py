"""Where a report is written: a file that ends in .html, local or in a store."""

import os

from tlray.errors import ConfigError
from tlray.lake.storage.open import open_store, require_writable
from tlray.lake.storage.uri import to_path, to_uri

MAX_BYTES = 5_000_000
"""The size of one report: what mail and chat take."""


def check_place(place: str) -> str:
    """Refuse a place where no report can be.

    Args:
        place: URI or path.

    Returns:
        Its URI.

    Raises:
        ConfigError: the name does not end in .html, or a local folder is not there or cannot be written to.
    """
    uri = to_uri(place)
    require_writable(uri)
    if not uri.lower().endswith((".html", ".htm")):
        raise ConfigError(f"the report is to be written to {place}; expected a name that ends in .html, such as report.html")
    if uri.startswith("file://"):
        path = to_path(uri)
        if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise ConfigError(f"the report cannot be written to {place}: {path.parent} is no folder that one can write to")
    return uri


def write(uri: str, html: str) -> int:
    """Write a report, over one that is there; returns its size in bytes."""
    data = html.encode()
    open_store(uri).write(uri, data)
    return len(data)
