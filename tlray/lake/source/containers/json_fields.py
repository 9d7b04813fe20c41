"""Fields of JSON documents that lie beside images in a tar file."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from tlray.columns.column import Column

JSON_BYTES = 2**20
"""The size of the largest JSON document that is read."""


class _Unreadable:
    def __repr__(self) -> str:
        return "in a JSON document that is broken or too large"


UNREADABLE = _Unreadable()
"""In place of a field's value, where the document is broken or too large: a value of no type."""


def is_json(extension: str) -> bool:
    """Whether the extension of a member, all after its key, is of a JSON document."""
    return extension.lower() == "json" or extension.lower().endswith(".json")


def read_document(data: bytes) -> Any:
    """What a JSON document says, in any of Unicode's encodings; UNREADABLE where it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return UNREADABLE


def find(value: Any, name: str) -> Any:
    """What a dotted name means in a JSON value: `a.b` is the field `a.b`, else `b` of the field `a`; `0` is an element."""
    ends = [len(name), *(dot.start() for dot in re.finditer(r"\.", name))] if name else []
    for end in ends:
        head, rest = name[:end], name[end + 1 :]
        if isinstance(value, dict) and head in value:
            return find(value[head], rest)
        if isinstance(value, list) and head.isdecimal() and int(head) < len(value):
            return find(value[int(head)], rest)
    return None if ends else value


def field_values(documents: Sequence[Any], columns: Iterable[Column]) -> dict[str, Any]:
    """The values of columns in the documents of one image, each of the first document that has it.

    Args:
        documents: as `read_document` gives them.
        columns: that travel, named by fields.
    """
    values: dict[str, Any] = {}
    for column in columns:
        found = [UNREADABLE if one is UNREADABLE else find(one, column.name) for one in documents]
        values[column.name] = next((one for one in found if one is not None), None)
    return values
