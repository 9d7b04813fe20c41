"""A column that travels: its name, and the type of its values in one word.

There are six types, so that a column is of the same one whatever format it came from, and every engine reads it: `text`,
`integer` (64 bits), `number` (a double), `boolean`, `date` and `timestamp` (microseconds, UTC); `text[]` is a list of texts.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from tlray.errors import ConfigError

TYPES: dict[str, pa.DataType] = {
    "text": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", "UTC"),
}
NO_VALUE = "null"
"""The type of a column in which no value is yet."""

ALL = "all"
"""In place of names: every column that there is."""

_LIST = "[]"
_DECIMAL_DIGITS = 15
"""Decimals of so many digits are doubles and back again without a change (IEEE 754; DBL_DIG in C)."""

_RESERVED = frozenset({
    "uri", "etag", "label", "width", "height", "error", "status", "size_bytes",
    "values", "prediction", "predictions", "probability", "top_labels", "top_probabilities",
})  # fmt: skip
_RESERVED_START = "embedding"
_FORBIDDEN = frozenset(" ,;{}()\n\t=")
"""Characters that Delta tables cannot have in names of columns (Delta protocol, "Column Mapping"; Spark refuses them)."""


class Column(BaseModel):
    """A column of a source that travels with its images into the table.

    Attributes:
        name: in the source and in the table.
        type: in one word, such as `number` or `text[]`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    type: str

    @property
    def field(self) -> pa.Field:
        """The column as Arrow has it."""
        return pa.field(self.name, arrow_type(self.type))

    @classmethod
    def of(cls, field: pa.Field) -> Self | None:
        """The column that an Arrow field is; None for a type that does not travel."""
        found = type_of(field.type)
        return None if found in (None, NO_VALUE) else cls(name=field.name, type=str(found))

    def __str__(self) -> str:
        return f"{self.name} ({self.type})"


def fields_of(columns: Iterable[Column]) -> list[pa.Field]:
    """The fields of an Arrow schema for some columns."""
    return [column.field for column in columns]


def described(columns: Iterable[Column]) -> str:
    """Names and types, for a message."""
    return ", ".join(map(str, columns)) or "none"


def arrow_type(word: str) -> pa.DataType:
    """Arrow's type of a type in one word."""
    return pa.list_(TYPES[word.removesuffix(_LIST)]) if word.endswith(_LIST) else TYPES[word]


def is_type(word: str) -> bool:
    """Whether a word names a type."""
    return word.removesuffix(_LIST) in TYPES


def is_list(word: str) -> bool:
    """Whether a type is one of lists."""
    return word.endswith(_LIST)


def item_of(word: str) -> str:
    """The type of a list's items."""
    return word.removesuffix(_LIST)


def type_of(kind: pa.DataType) -> str | None:
    """The word for an Arrow type, `null` where it has no values; None for one that does not travel (bytes, structs, times)."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        item = type_of(kind.value_type)
        return None if item is None or is_list(item) else NO_VALUE if item == NO_VALUE else item + _LIST
    if pa.types.is_dictionary(kind):
        return type_of(kind.value_type)
    tests: list[tuple[str, Any]] = [
        (NO_VALUE, pa.types.is_null),
        ("text", lambda one: pa.types.is_string(one) or pa.types.is_large_string(one) or pa.types.is_string_view(one)),
        ("boolean", pa.types.is_boolean),
        ("integer", pa.types.is_integer),
        ("number", pa.types.is_floating),
        ("number", lambda one: pa.types.is_decimal(one) and one.precision <= _DECIMAL_DIGITS),
        ("date", pa.types.is_date),
        ("timestamp", pa.types.is_timestamp),
    ]
    return next((word for word, test in tests if test(kind)), None)


def why_not(name: str, reserved: Collection[str] = ()) -> str | None:
    """Why a column of a name cannot travel; None where it can.

    Args:
        name: of the column.
        reserved: further names that are taken, in small letters.
    """
    lower = name.lower()
    if lower in _RESERVED or lower in reserved or lower.startswith(_RESERVED_START):
        return "it is a name of the table's own"
    odd = sorted(_FORBIDDEN.intersection(name))
    if odd:
        return f"names of a table's columns have no {' '.join(map(repr, odd))}"
    return None if name else "it has no name"


def requested(given: Sequence[str], reserved: Collection[str] = ()) -> dict[str, str | None]:
    """What `source.columns` asks for: types by name, None where none is declared; empty for all columns.

    Args:
        given: `all`, or names, each perhaps with its type: `price`, `price::number`, `tags::text[]`.
        reserved: further names that are taken, in small letters.

    Raises:
        ConfigError: an unknown type, a name that is reserved or given twice, or `all` beside others.
    """
    if ALL in given:
        if len(given) > 1:
            raise ConfigError(f"source.columns: {ALL} stands alone, given {', '.join(given)}")
        return {}
    wanted: dict[str, str | None] = {}
    for each in given:
        name, _, word = each.partition("::")
        if "::" in each and not is_type(word):
            raise ConfigError(
                f"source.columns: {each} has the type {word!r}; expected one of {', '.join(TYPES)}, or a list of one, as text[]"
            )
        if reason := why_not(name, reserved):
            raise ConfigError(f"source.columns: {name!r} cannot travel into a table, as {reason}; rename it in the source")
        if name.lower() in (known.lower() for known in wanted):
            raise ConfigError(f"source.columns: {name} is given twice (capital letters do not tell names apart)")
        wanted[name] = word or None
    return wanted
