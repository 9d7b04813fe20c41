"""The type of a column of texts, as CSV files have them: the narrowest one that each of its cells is of.

A type is never guessed from some cells alone. `007` is a text, as a number could not give it back.
"""

import pyarrow as pa
import pyarrow.compute as pc

from tlray.columns.column import NO_VALUE
from tlray.columns.values import MISSING_NUMBERS, PATTERNS, from_texts

_NARROWEST_FIRST = ("boolean", "integer", "number", "date", "timestamp")


class TextTypes:
    """Finds the type of one column, as its cells go by."""

    def __init__(self) -> None:
        self._candidates = list(_NARROWEST_FIRST)
        self._has_value = self._has_text = False

    def add(self, texts: pa.Array) -> None:
        """Look at some cells; null and empty ones say nothing.

        Args:
            texts: N strings.
        """
        texts = texts.filter(pc.not_equal(texts, ""))
        self._has_text |= len(texts) > 0
        cells = texts.filter(pc.invert(pc.is_in(texts, value_set=MISSING_NUMBERS)))
        if len(cells):
            self._has_value = True
            self._candidates = [word for word in self._candidates if _all_are(cells, word)]

    @property
    def found(self) -> str:
        """The type; `null` where no cell has a value."""
        if self._has_value:
            return next(iter(self._candidates), "text")
        return "text" if self._has_text else NO_VALUE


def _all_are(cells: pa.Array, word: str) -> bool:
    if not pc.all(pc.match_substring_regex(cells, PATTERNS[word])).as_py():
        return False
    try:
        from_texts(cells, word)  # a month 13, or a whole number of 30 digits
    except (pa.ArrowException, ValueError):
        return False
    return True


def wider(one: str, other: str) -> str | None:
    """The type that holds the values of both; None where there is none.

    Args:
        one: a type, or `null`.
        other: likewise.
    """
    if one == other or other == NO_VALUE:
        return one
    if one == NO_VALUE:
        return other
    pairs = {frozenset({"integer", "number"}): "number", frozenset({"date", "timestamp"}): "timestamp"}
    return pairs.get(frozenset({one, other}))
