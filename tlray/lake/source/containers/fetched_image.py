"""The bytes of one image, wherever they came from."""

from dataclasses import dataclass

from tlray.errors import ImageError


@dataclass(frozen=True, slots=True)
class FetchedImage:
    """An image's bytes, or why there are none; one that is in a container or a file of its own.

    Attributes:
        uri: its own, or that of the container where the error is the container's.
        etag: the version of the file that it is in.
        label: None where it has none, or none was asked for.
        data: the encoded image.
    """

    uri: str
    etag: str
    label: str | None
    data: bytes | ImageError
