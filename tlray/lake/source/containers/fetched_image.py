"""The bytes of one image, wherever they came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tlray.errors import ImageError


@dataclass(frozen=True, slots=True)
class FetchedImage:
    """An image's bytes, or why there are none; one that is in a container or a file of its own.

    Attributes:
        uri: its own, or that of the container where the error is the container's.
        etag: the version of the file that it is in.
        label: None where it has none, or none was asked for.
        data: the encoded image.
        values: of the columns that travel, by name, as they were found; a column that is not named has none.
        note: why it has no label though there is something in its place, for people.
    """

    uri: str
    etag: str
    label: str | None
    data: bytes | ImageError
    values: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
