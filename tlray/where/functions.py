"""The functions that a condition may call, by DuckDB's names: what each takes and how Arrow computes it."""

import re
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from tlray.columns.column import arrow_type, is_list
from tlray.where.terms import NUMERIC, TEMPORAL, Term, list_contains

Function = Callable[[Sequence[Term]], Term | None]
"""From its arguments to its term; None where they are not of its types."""


def _of_text(kernel: Callable[[pa.Array], pa.Array]) -> Function:
    return lambda given: given[0].map("text", kernel) if [one.type for one in given] == ["text"] else None


def _of_time(kernel: Callable[[pa.Array], pa.Array]) -> Function:
    def function(given: Sequence[Term]) -> Term | None:
        if len(given) != 1 or given[0].type not in TEMPORAL:
            return None
        return given[0].map("integer", lambda values: kernel(values).cast(pa.int64()))

    return function


def _looking_for(pattern: str) -> Function:
    """A test for a text within a text, both taken character by character.

    Args:
        pattern: of RE2, with `{}` for the text.
    """

    def function(given: Sequence[Term]) -> Term | None:
        if [one.type for one in given] != ["text", "text"] or not given[1].is_constant:
            return None
        return matching(given[0], pattern.format(re2_quoted(given[1].constant)))

    return function


def _length(given: Sequence[Term]) -> Term | None:
    if len(given) != 1:
        return None
    kernel = pc.list_value_length if is_list(given[0].type) else pc.utf8_length if given[0].type == "text" else None
    return None if kernel is None else given[0].map("integer", lambda values: kernel(values).cast(pa.int64()))


def _list_contains(given: Sequence[Term]) -> Term | None:
    if len(given) != 2 or not is_list(given[0].type) or not given[1].is_constant:
        return None
    item = given[0].type.removesuffix("[]")
    fits = given[1].type in (item, "null") or {given[1].type, item} <= set(NUMERIC)
    return list_contains(*given) if fits else None


def _contains(given: Sequence[Term]) -> Term | None:
    return _list_contains(given) or _looking_for("{}")(given)


def _coalesce(given: Sequence[Term]) -> Term | None:
    words = {one.type for one in given} - {"null"}
    if not words or (len(words) > 1 and words != set(NUMERIC)):
        return None
    word = "number" if len(words) > 1 else next(iter(words))

    def compute(batch: pa.RecordBatch) -> pa.Array | pa.Scalar:
        return pc.coalesce(*(one.compute(batch).cast(arrow_type(word)) for one in given))

    return Term(word, compute)


def _abs(given: Sequence[Term]) -> Term | None:
    return given[0].map(given[0].type, pc.abs_checked) if len(given) == 1 and given[0].type in NUMERIC else None


FUNCTIONS: dict[str, tuple[str, Function]] = {
    "lower": ("a text", _of_text(pc.utf8_lower)),
    "upper": ("a text", _of_text(pc.utf8_upper)),
    "length": ("a text or a list", _length),
    "len": ("a text or a list", _length),
    "starts_with": ("a text and the text that it begins with, in quotes", _looking_for(r"\A(?:{})")),
    "ends_with": ("a text and the text that it ends with, in quotes", _looking_for(r"(?:{})\z")),
    "contains": ("a text or a list, and what is in it", _contains),
    "list_contains": ("a list and what is in it", _list_contains),
    "year": ("a date or timestamp", _of_time(pc.year)),
    "month": ("a date or timestamp", _of_time(pc.month)),
    "day": ("a date or timestamp", _of_time(pc.day)),
    "abs": ("a number", _abs),
    "coalesce": ("values of one type", _coalesce),
}
"""By name, what a function takes, for messages, and what it does."""


def matching(text: Term, pattern: str) -> Term:
    """Whether a text has what a pattern of RE2 describes, of any length and in time that grows with the text alone."""
    return text.map("boolean", lambda values: pc.match_substring_regex(values, f"(?s){pattern}"))


def like(text: Term, pattern: str, escape: str | None, *, any_case: bool) -> Term:
    """`like`: `%` stands for any text, `_` for one character, and what follows the escape for itself.

    Args:
        text: that is looked at.
        pattern: of `like`.
        escape: one character, or None for none, as in DuckDB.
        any_case: both are compared in small letters (`ilike`).
    """
    if any_case:
        text, pattern = text.map("text", pc.utf8_lower), pattern.lower()
    pieces, is_escaped = [], False
    for character in pattern:
        if not is_escaped and character == escape:
            is_escaped = True
            continue
        wild = None if is_escaped else {"%": ".*", "_": "."}.get(character)
        pieces.append(re2_quoted(character) if wild is None else wild)
        is_escaped = False
    return matching(text, rf"\A(?:{''.join(pieces)})\z")


def re2_quoted(text: str) -> str:
    """A text as a pattern that stands for it alone."""
    return "".join(re.escape(one) if one.isascii() else one for one in text)
