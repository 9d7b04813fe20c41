"""Values of any format as those of a column that travels: what fits its type is converted, what does not is told.

Null stands for a missing value, and so does NaN, which the numbers of pandas have in its place. A date is a timestamp at
midnight, a timestamp without a zone is taken as UTC, what is finer than a microsecond is cut off. A text is read as what
the column is of: `12`, `9.5`, `true`, `2026-01-31`, `2026-01-31T12:00:00Z`, and a list as JSON has it.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.columns.column import NO_VALUE, Column, arrow_type, is_list, item_of, type_of

Values = TypeVar("Values", pa.Array, pa.ChunkedArray)

MISSING_NUMBERS = pa.array(["", "nan", "NaN", "<NA>"])
"""Texts that stand for no value in a column that is not of texts, as pandas and NumPy write them; empty is none in any."""

PATTERNS = {
    "boolean": r"^(?:true|false|True|False|TRUE|FALSE)$",
    "integer": r"^-?(?:0|[1-9][0-9]*)$",
    "number": r"^-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?$",
    "date": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$",
    "timestamp": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?$",
}
"""What a text must look like to be read as another type. A zero in front (`007`) is of a name, not of a number."""

_ZONE = r"(?:Z|[+-][0-9]{2}:?[0-9]{2})$"
_NO_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
_WIDER = {("integer", "number"), ("number", "integer"), ("date", "timestamp")}
"""Types whose values may be converted, each value by itself: 3.0 is an integer, 3.5 is none."""

_FAILURES = (pa.ArrowException, ValueError, TypeError, OverflowError)
"""What Arrow and Python raise for values that do not fit."""


class UnfitError(ValueError):
    """A value is not of its column's type.

    Args:
        position: of the first such value.
        value: as it was given.
    """

    def __init__(self, position: int, value: object) -> None:
        super().__init__(position, value)
        self.position, self.value = position, value


def converted(values: Values, column: Column) -> pa.Array:
    """Values as a column has them.

    Args:
        values: N, of any Arrow type.
        column: that they are to be of.

    Returns:
        N values of the column's Arrow type.

    Raises:
        UnfitError: names the first value that does not fit.
    """
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    try:
        return _converted(whole, column.type)
    except _FAILURES:
        position = _first_unfit(whole, column.type)
    raise UnfitError(position, whole[position].as_py())


def fitting(values: Sequence[Any], column: Column) -> tuple[pa.Array, list[int]]:
    """Values of Python, those of JSON say, as a column has them, and null in place of those that do not fit.

    Args:
        values: N.
        column: that they are to be of.

    Returns:
        N values, and the positions of those that did not fit.
    """
    try:
        return _converted(pa.array(values), column.type), []
    except _FAILURES:
        pass
    kept, unfit = [], []
    for position, value in enumerate(values):
        try:
            kept.append(_converted(pa.array([value]), column.type))
        except _FAILURES:
            kept.append(pa.nulls(1, arrow_type(column.type)))
            unfit.append(position)
    return pa.concat_arrays(kept), unfit


def _first_unfit(values: pa.Array, word: str) -> int:
    """By bisection, the first value that does not fit: the shortest beginning that cannot be converted ends with it."""
    fits, fails = 0, len(values)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        try:
            _converted(values.slice(fits, middle - fits), word)
            fits = middle
        except _FAILURES:
            fails = middle
    return fits


def _converted(values: pa.Array, word: str) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    found = type_of(values.type)
    if found == NO_VALUE and not is_list(word):
        return pa.nulls(len(values), arrow_type(word))
    if found == "text" and word != "text":
        return from_texts(values.cast(pa.string()), word)
    if is_list(word):
        return _lists(values, word)
    if found == "text":
        return values.cast(pa.string())
    if found != word and (found, word) not in _WIDER:
        raise ValueError(f"{values.type} is no {word}")
    return _plain(values, word)


def _plain(values: pa.Array, word: str) -> pa.Array:
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    if pa.types.is_decimal(values.type) and word == "integer":
        values = values.cast(pa.float64())
    if word == "timestamp" and pa.types.is_timestamp(values.type):
        return values.cast(pa.timestamp("us", values.type.tz), safe=False).cast(arrow_type(word))
    if word == "timestamp":
        return values.cast(pa.timestamp("us")).cast(arrow_type(word))
    return values.cast(arrow_type(word))


def _lists(values: pa.Array, word: str) -> pa.Array:
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), arrow_type(word))
    if not hasattr(values.type, "value_type") or pa.types.is_dictionary(values.type):
        raise ValueError(f"{values.type} is no {word}")
    plain = values.cast(pa.list_(values.type.value_type))
    lengths = np.asarray(pc.fill_null(pc.list_value_length(plain), 0))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    items = _converted(plain.flatten(), item_of(word))
    mask = pc.is_null(plain) if plain.null_count else None
    return pa.ListArray.from_arrays(offsets, items, type=arrow_type(word), mask=mask)


def from_texts(texts: pa.Array, word: str) -> pa.Array:
    """Texts as values of a type.

    Args:
        texts: N strings; those of MISSING_NUMBERS are null, where the type is not text only the empty one is.
        word: the type.

    Raises:
        ValueError, pa.ArrowException: one cannot be read as that.
    """
    if word == "text":
        return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
    texts = pc.if_else(pc.is_in(texts, value_set=MISSING_NUMBERS), pa.scalar(None, pa.string()), texts)
    if is_list(word):
        cells = [None if text is None else _json_list(text) for text in texts.to_pylist()]
        return _lists(pa.array(cells), word)
    if word == "integer":
        texts = pc.replace_substring_regex(texts, r"^(-?[0-9]+)\.0+$", r"\1")  # as pandas writes them beside a missing one
    if pc.all(pc.match_substring_regex(texts, PATTERNS[word])).as_py() is False:
        raise ValueError(f"no {word}")
    return _READERS.get(word, lambda each: each.cast(arrow_type(word)))(texts)


def _booleans(texts: pa.Array) -> pa.Array:
    return pc.equal(pc.utf8_lower(texts), "true")


def _timestamps(texts: pa.Array) -> pa.Array:
    texts = pc.if_else(pc.match_substring_regex(texts, _NO_TIME), pc.binary_join_element_wise(texts, "T00:00:00", ""), texts)
    has_zone = pc.match_substring_regex(texts, _ZONE)
    nothing = pa.scalar(None, pa.string())
    zoned = pc.if_else(has_zone, texts, nothing).cast(arrow_type("timestamp"))
    plain = pc.if_else(has_zone, nothing, texts).cast(pa.timestamp("us")).cast(arrow_type("timestamp"))
    return pc.coalesce(zoned, plain)


_READERS: dict[str, Callable[[pa.Array], pa.Array]] = {"boolean": _booleans, "timestamp": _timestamps}


def _json_list(text: str) -> list[Any]:
    value = json.loads(text)
    if not isinstance(value, list):
        raise ValueError("no list")
    return value
