"""The pieces of a condition: what each is of, and how Arrow computes it.

Null as in SQL: what is compared with null, or computed from it, is null; `and` and `or` know three values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.columns.column import arrow_type, item_of

Compute = Callable[[pa.RecordBatch], pa.Array | pa.Scalar]
"""From rows to values, one for each or one for all."""

NUMERIC = ("integer", "number")
TEMPORAL = ("date", "timestamp")

_COMPARISONS = {
    "=": pc.equal,
    "<>": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_ARITHMETIC = {"+": pc.add_checked, "-": pc.subtract_checked, "*": pc.multiply_checked}


@dataclass(frozen=True)
class Term:
    """A piece of a condition: its type, and how it is computed.

    Attributes:
        type: of its values, in one word; `null` for the literal alone.
        compute: its values, or the one that it is for all rows.
        constant: the value of a literal.
        is_constant: whether it is a literal.
    """

    type: str
    compute: Compute
    constant: Any = None
    is_constant: bool = False

    def map(self, word: str, function: Callable[[Any], Any]) -> "Term":
        """What a function makes of its values."""
        return Term(word, lambda batch: function(self.compute(batch)))


def literal(value: Any, word: str) -> Term:
    """A value that is the same for all rows; None is null."""
    scalar = pa.scalar(value, pa.null() if word == "null" else arrow_type(word))
    return Term(word, lambda _: scalar, value, True)


def column(name: str, word: str) -> Term:
    """A term that gives the values of a column."""
    return Term(word, lambda batch: _plain(batch.column(name), word))


def _plain(values: pa.Array, word: str) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values if values.type == arrow_type(word) else values.cast(arrow_type(word), safe=False)


def both(function: Callable[[Any, Any], Any], word: str, left: Term, right: Term) -> Term:
    """What a function makes of two terms' values."""
    return Term(word, lambda batch: function(left.compute(batch), right.compute(batch)))


def of_type(term: Term, word: str) -> Term:
    """A term as one of a wider type: integers as numbers, dates as timestamps, null as anything."""
    if term.type == word:
        return term
    if term.is_constant:
        return literal(_widened(term.constant, word), word)
    if word == "timestamp":
        return term.map(word, lambda values: values.cast(pa.timestamp("us")).cast(arrow_type(word)))
    return term.map(word, lambda values: values.cast(arrow_type(word), safe=False))


def _widened(value: Any, word: str) -> Any:
    if word == "timestamp" and value is not None:
        return datetime.combine(value, time(), UTC)
    return float(value) if word == "number" and value is not None else value


def compared(sign: str, left: Term, right: Term) -> Term:
    """A comparison of two terms of one type."""
    return both(_COMPARISONS[sign], "boolean", left, right)


def distinct(left: Term, right: Term) -> Term:
    """`is distinct from`: two nulls are the same, and null is another than any value."""

    def function(one: Any, other: Any) -> Any:
        unequal = pc.fill_null(pc.not_equal(one, other), False)
        return pc.or_(unequal, pc.xor(pc.is_null(one), pc.is_null(other)))

    return both(function, "boolean", left, right)


def any_of(terms: Sequence[Term]) -> Term:
    """The `or` of several conditions."""
    return _folded(pc.or_kleene, terms)


def all_of(terms: Sequence[Term]) -> Term:
    """The `and` of several conditions."""
    return _folded(pc.and_kleene, terms)


def _folded(function: Callable[[Any, Any], Any], terms: Sequence[Term]) -> Term:
    def compute(batch: pa.RecordBatch) -> Any:
        found = terms[0].compute(batch)
        for term in terms[1:]:
            found = function(found, term.compute(batch))
        return found

    return Term("boolean", compute)


def is_in(term: Term, values: Sequence[Any]) -> Term:
    """Whether a term is one of some values, which may be null: then what is not found is null, as with `or`."""
    there = pa.array([value for value in values if value is not None], arrow_type(term.type))
    otherwise = pa.scalar(None if len(there) < len(values) else False, pa.bool_())

    def function(given: Any) -> Any:
        found = pc.if_else(pc.is_in(given, value_set=there), pa.scalar(True), otherwise)
        return pc.if_else(pc.is_null(given), pa.scalar(None, pa.bool_()), found)

    return term.map("boolean", function)


def arithmetic(sign: str, left: Term, right: Term) -> Term:
    """A sum, a difference, a product or a quotient; what is divided by zero is null."""
    if sign == "/":
        return both(_quotient, "number", of_type(left, "number"), of_type(right, "number"))
    word = "number" if "number" in (left.type, right.type) else "integer"
    return both(_ARITHMETIC[sign], word, of_type(left, word), of_type(right, word))


def _quotient(one: Any, other: Any) -> Any:
    return pc.divide(one, pc.if_else(pc.equal(other, 0.0), pa.scalar(None, pa.float64()), other))


def list_contains(lists: Term, item: Term) -> Term:
    """Whether a list has an item; null where there is no list, or no item to look for."""
    wanted = pa.scalar(item.constant, arrow_type(item_of(lists.type)))

    def function(given: pa.ListArray) -> pa.Array:
        hits = np.asarray(pc.fill_null(pc.equal(pc.list_flatten(given), wanted), False), bool)
        found_N = np.zeros(len(given), bool)
        found_N[np.asarray(pc.list_parent_indices(given))[hits]] = True
        is_null = pc.is_null(given) if wanted.is_valid else pa.array(np.ones(len(given), bool))
        return pc.if_else(is_null, pa.scalar(None, pa.bool_()), pa.array(found_N))

    return lists.map("boolean", function)
