"""Files of JSON lines: an object a line, ended by line feeds alone, as a text of JSON may hold any other line separator."""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from tlray.errors import SourceError
from tlray.lake.storage.open import open_store
from tlray.lake.storage.store import READ_BUFFER_BYTES

_MARK = b"\xef\xbb\xbf"
"""UTF-8's byte order mark, which may begin the first line."""


def json_lines(uri: str, max_bytes: int | None = None) -> Iterator[bytes]:
    """Lines of a file that are not blank, streamed.

    Args:
        uri: of the file.
        max_bytes: of a text in it; None for a file whose lines may be of any length.

    Raises:
        SourceError: a line is much longer than a text may be.
        StorageError: the store failed.
    """
    with open_store(uri).stream(uri)[0] as stream:
        rest, is_first = b"", True
        for block in _blocks(stream):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                found = line.removeprefix(_MARK) if is_first else line
                is_first = False
                if found.strip():
                    yield found
            if max_bytes is not None and len(rest) > max_bytes + READ_BUFFER_BYTES:
                raise SourceError(
                    f"{uri} has a line of more than {max_bytes} bytes (source.max_image_bytes); is it JSON lines?"
                )
        rest = rest.removeprefix(_MARK) if is_first else rest
        if rest.strip():
            yield rest


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    while block := stream.read(READ_BUFFER_BYTES):
        yield block


def read_object(line: bytes, encoding: str = "utf-8") -> dict[str, Any]:
    """The object that a line of JSON is.

    Raises:
        ValueError: it is none, or not of the encoding; RecursionError: its brackets are too deep.
    """
    document = json.loads(line.decode(encoding))
    if not isinstance(document, dict):
        raise ValueError(f"a {type(document).__name__}, expected an object")
    return document
