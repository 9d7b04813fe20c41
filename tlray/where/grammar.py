"""From the text of a condition to its terms: sqlglot reads it as DuckDB would, and what is not on a list here is refused."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
from sqlglot import exp
from sqlglot.errors import ErrorLevel

from tlray.columns.column import is_list
from tlray.columns.naming import meant, no_column
from tlray.columns.values import from_texts
from tlray.errors import WhereError
from tlray.where import terms
from tlray.where.functions import FUNCTIONS, like
from tlray.where.terms import NUMERIC, TEMPORAL, Compute, Term
from tlray.where.tree import Node, read_tree, shown

_INTEGERS = range(-(2**63), 2**63)
_SIGNS = {"EQ": "=", "NEQ": "<>", "LT": "<", "LTE": "<=", "GT": ">", "GTE": ">="}
_OPERATORS = {"Add": "+", "Sub": "-", "Mul": "*", "Div": "/"}


def read(text: str, types: Mapping[str, str], what: str) -> tuple[list[str], Compute]:
    """Read a condition, and make of it what computes it.

    Args:
        text: of the condition.
        types: of the columns by name, in one word.
        what: has these columns, for messages.

    Returns:
        The columns that it asks, and what computes its booleans.

    Raises:
        WhereError: see `tlray.where.condition.read_condition`.
    """
    binder = _Binder(text, types, what)
    try:
        term = binder.bind(read_tree(text))
    except RecursionError as error:
        raise WhereError(f"where: {shown(text)} is too long to be read; make it of fewer pieces") from error
    if term.type not in ("boolean", "null"):
        raise WhereError(f"where: {shown(text)} is a {term.type}, expected a condition, such as {shown(text)} = ...")
    return sorted(binder.columns), term.compute


class _Binder:
    """Makes terms of a tree's nodes.

    Args:
        text: of the condition.
        types: of the columns.
        what: has them.

    Attributes:
        columns: that were named.
    """

    def __init__(self, text: str, types: Mapping[str, str], what: str) -> None:
        self.columns: set[str] = set()
        self._text, self._types, self._what = text, types, what

    def bind(self, node: Node) -> Term:
        name = type(node).__name__
        # What a later version of sqlglot says by an argument of its own must not be passed over.
        unknown = {key for key, value in node.args.items() if value} - _ARGUMENTS.get(name, _TWO)
        if unknown:
            self._refuse(node, f"{' and '.join(sorted(unknown))} is no part of a condition here")
        if name in _SIGNS:
            return terms.compared(_SIGNS[name], *self._pair(node))
        if name in _OPERATORS:
            return self._arithmetic(node, _OPERATORS[name])
        handler: Callable[[Any], Term] | None = getattr(self, f"_{name.lower()}", None) if name in _NODES else None
        if handler is None:
            self._refuse(
                node, "this is no part of a condition here; there are comparisons, and, or, not, in, between, like, is"
            )
        return handler(node)

    def _refuse(self, node: Node, why: str) -> NoReturn:
        said = node.sql(dialect="duckdb", unsupported_level=ErrorLevel.IGNORE)
        raise WhereError(f"where: {shown(said)}: {why}")

    def _paren(self, node: Node) -> Term:
        return self.bind(node.this)

    def _condition(self, node: Node) -> Term:
        term = self.bind(node)
        if term.type == "null":
            return terms.of_type(term, "boolean")
        if term.type != "boolean":
            self._refuse(node, f"a {term.type}, expected a condition")
        return term

    def _and(self, node: Node) -> Term:
        return terms.all_of([self._condition(each) for each in node.flatten(unnest=False)])

    def _or(self, node: Node) -> Term:
        return terms.any_of([self._condition(each) for each in node.flatten(unnest=False)])

    def _not(self, node: Node) -> Term:
        return self._condition(node.this).map("boolean", pc.invert)

    def _boolean(self, node: Node) -> Term:
        return terms.literal(bool(node.this), "boolean")

    def _null(self, _: Node) -> Term:
        return terms.literal(None, "null")

    def _literal(self, node: Node) -> Term:
        if node.is_string:
            return terms.literal(str(node.this), "text")
        try:
            value = int(node.this) if str(node.this).isdecimal() else float(node.this)
        except ValueError:
            self._refuse(node, "this is no number")
        is_integer = isinstance(value, int) and value in _INTEGERS
        return terms.literal(value, "integer") if is_integer else terms.literal(float(value), "number")

    def _neg(self, node: Node) -> Term:
        term = self.bind(node.this)
        if term.type not in NUMERIC:
            self._refuse(node, f"a {term.type} has no sign")
        if term.is_constant:
            return terms.literal(-term.constant, term.type)
        return term.map(term.type, pc.negate_checked)

    def _column(self, node: Node) -> Term:
        name = ".".join(part.name for part in node.parts) if isinstance(node, exp.Column) else node.sql()
        found = meant(name, self._types)
        if found is None:
            raise WhereError(f"where: {no_column(self._what, name, self._types)}")
        self.columns.add(found)
        return terms.column(found, self._types[found])

    _dot = _column

    def _cast(self, node: Node) -> Term:
        asked = node.to.this.name  # of timestamps there are several, with and without a zone
        word = "date" if asked == "DATE" else "timestamp" if asked.startswith("TIMESTAMP") else ""
        term = self.bind(node.this)
        if word and term.is_constant and term.type == "text":
            return self._read(node, term, word)
        if word == "date" and term.type == "timestamp":
            return term.map(word, lambda values: values.cast(pa.timestamp("us")).cast(pa.date32(), safe=False))
        if (term.type, word) == ("date", "timestamp") or (word and term.type == word):
            return terms.of_type(term, word)
        return self._refuse(node, "expected a date or timestamp, such as date '2026-01-31'")

    def _read(self, node: Node, term: Term, word: str) -> Term:
        """A text as a date or timestamp."""
        try:
            value = from_texts(pa.array([term.constant], pa.string()), word)
        except (pa.ArrowException, ValueError):
            self._refuse(node, f"{term.constant!r} is no {word}; expected one like 2026-01-31" + _TIME.get(word, ""))
        return terms.literal(value[0].as_py(), word)

    def _pair(self, node: Node) -> tuple[Term, Term]:
        return self._alike(node, self.bind(node.this), self.bind(node.expression))

    def _alike(self, node: Node, left: Term, right: Term) -> tuple[Term, Term]:
        """Two terms as they can be compared."""
        for one, other in ((left, right), (right, left)):
            if one.type in TEMPORAL and other.type == "text" and other.is_constant:
                read = self._read(node, other, one.type if len(other.constant) <= len("2026-01-31") else "timestamp")
                left, right = (one, read) if one is left else (read, one)
                break
        word = _common(left.type, right.type)
        if word is None or is_list(word):
            hint = "; list_contains(...) looks into a list" if "[]" in left.type + right.type else ""
            self._refuse(node, f"a {left.type} and a {right.type} cannot be compared{hint}")
        return terms.of_type(left, word), terms.of_type(right, word)

    def _nullsafeneq(self, node: Node) -> Term:
        return terms.distinct(*self._pair(node))

    def _nullsafeeq(self, node: Node) -> Term:
        return self._nullsafeneq(node).map("boolean", pc.invert)

    def _is(self, node: Node) -> Term:
        term = self.bind(node.this)
        if isinstance(node.expression, exp.Null):
            return term.map("boolean", pc.is_null)
        if not isinstance(node.expression, exp.Boolean) or term.type not in ("boolean", "null"):
            self._refuse(node, "expected is null, is true or is false")
        return terms.compared("=", *self._pair(node)).map("boolean", lambda found: pc.fill_null(found, False))

    def _between(self, node: Node) -> Term:
        term = self.bind(node.this)
        low = self._alike(node, term, self.bind(node.args["low"]))
        high = self._alike(node, term, self.bind(node.args["high"]))
        return terms.all_of([terms.compared(">=", *low), terms.compared("<=", *high)])

    def _in(self, node: Node) -> Term:
        values = node.expressions
        if not values:
            self._refuse(node, "expected a list of values in brackets")
        term = self.bind(node.this)
        pairs = [self._alike(node, term, self.bind(each)) for each in values]
        if not all(value.is_constant for _, value in pairs):
            return terms.any_of([terms.compared("=", *pair) for pair in pairs])
        words = {value.type for _, value in pairs}
        word = next((each for each in ("timestamp", "number") if each in words), pairs[0][1].type)
        return terms.is_in(terms.of_type(term, word), [terms.of_type(value, word).constant for _, value in pairs])

    def _like(self, node: Node, escape: str | None = None) -> Term:
        text, pattern = self.bind(node.this), self.bind(node.expression)
        if text.type != "text" or pattern.type != "text" or not pattern.is_constant:
            self._refuse(node, "expected a text like a pattern in quotes")
        term = like(text, pattern.constant, escape, any_case=isinstance(node, exp.ILike))
        return term.map("boolean", pc.invert) if node.args.get("negate") else term

    _ilike = _like

    def _escape(self, node: Node) -> Term:
        escape = node.expression
        if not isinstance(node.this, (exp.Like, exp.ILike)) or not escape.is_string or len(escape.this) != 1:
            self._refuse(node, "expected like ... escape and one character")
        return self._like(node.this, str(escape.this))

    def _arithmetic(self, node: Node, sign: str) -> Term:
        left, right = self.bind(node.this), self.bind(node.expression)
        if not {left.type, right.type} <= {*NUMERIC, "null"} or left.type == right.type == "null":
            self._refuse(node, f"a {left.type} {sign} a {right.type} is not computed, only numbers are")
        return terms.arithmetic(sign, left, right)

    def _anonymous(self, node: Node) -> Term:
        name = str(node.this).lower()
        if name not in FUNCTIONS:
            near = difflib.get_close_matches(name, FUNCTIONS, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            self._refuse(node, f"there is no function {name}; {hint}there are {', '.join(FUNCTIONS)}")
        takes, function = FUNCTIONS[name]
        given = [self.bind(each) for each in node.expressions]
        term = function(given)
        if term is None:
            self._refuse(node, f"{name} takes {takes}, given {', '.join(one.type for one in given) or 'nothing'}")
        return term


_TWO = frozenset({"this", "expression"})
_ARGUMENTS = {
    "Anonymous": frozenset({"this", "expressions"}),
    "Between": frozenset({"this", "low", "high"}),
    "Cast": frozenset({"this", "to"}),
    "Column": frozenset({"this", "table", "db", "catalog"}),
    "Div": _TWO | {"typed", "safe"},
    "ILike": _TWO | {"negate"},
    "In": frozenset({"this", "expressions"}),
    "Like": _TWO | {"negate"},
    "Literal": frozenset({"this", "is_string"}),
}
"""What is read of the nodes of sqlglot's trees, where it is not `this` and `expression`."""

_NODES = frozenset(
    {
        *("Paren", "And", "Or", "Not", "Boolean", "Null", "Literal", "Neg", "Column", "Dot", "Cast", "Escape", "Anonymous"),
        *("NullSafeNEQ", "NullSafeEQ", "Is", "Between", "In", "Like", "ILike"),
    }
)
"""The nodes that there is a method for, beside comparisons and arithmetic."""

_TIME = {"timestamp": "T12:00:00"}


def _common(one: str, other: str) -> str | None:
    """The type in which two terms are compared."""
    if one == other or other == "null":
        return one if one != "null" else "boolean"
    if one == "null":
        return other
    if {one, other} == set(NUMERIC):
        return "number"
    return "timestamp" if {one, other} == set(TEMPORAL) else None
