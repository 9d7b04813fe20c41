"""From the text of a condition to sqlglot's tree of it, as DuckDB would read it."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlglot import exp
from sqlglot.dialects.duckdb import DuckDB
from sqlglot.errors import ParseError, SqlglotError

from tlray.errors import WhereError

MAX_CHARACTERS = 65_536
MAX_DEPTH = 64
"""The deepest nesting of what is inside brackets, `not` or a sign: both readers call themselves for each."""

_SHOWN_CHARACTERS = 60
Node = Any
"""A node of sqlglot's trees, whose types have changed from version to version."""

_DuckDBParser: Any = DuckDB.Parser


class _Parser(_DuckDBParser):  # type: ignore[misc]
    """DuckDB's, which knows no function: each is a name and its arguments, whatever a later version of sqlglot makes of it."""

    FUNCTIONS: Mapping[str, Any] = {}
    FUNCTION_PARSERS: Mapping[str, Any] = {}
    NO_PAREN_FUNCTIONS: Mapping[Any, Any] = {}
    NO_PAREN_FUNCTION_PARSERS: Mapping[str, Any] = {}


def read_tree(text: str) -> Node:
    """Parse a condition of SQL into its tree.

    Raises:
        WhereError: it is too long, or not one condition of SQL.
    """
    if not text.strip():
        raise WhereError("where is empty; expected a condition, such as price < 10 and site = 'A'")
    if len(text) > MAX_CHARACTERS:
        raise WhereError(f"where has {len(text)} characters; expected at most {MAX_CHARACTERS}")
    dialect = DuckDB()
    try:
        tokens = dialect.tokenize(text)
        _check_depth(tokens, text)
        parser = _Parser(dialect=dialect, error_message_context=MAX_CHARACTERS)
        trees = parser.parse_into(exp.Condition, tokens, text)
    except SqlglotError as error:
        raise WhereError(f"where: {shown(text)} cannot be read{_place(error)}: {_said(error)}; {_HINT}") from error
    if len(trees) != 1 or trees[0] is None:
        raise WhereError(f"where: {shown(text)} is {len(trees)} statements, expected one condition")
    return trees[0]


_HINT = "texts stand in 'single' quotes, names that are words of SQL or have signs in them in \"double\" ones"


def _check_depth(tokens: Sequence[Any], text: str) -> None:
    depth = deepest = signs = 0
    for token in tokens:
        name = token.token_type.name
        depth += (name in ("L_PAREN", "L_BRACKET", "CASE")) - (name in ("R_PAREN", "R_BRACKET"))
        signs = signs + 1 if name in ("NOT", "DASH", "TILDA", "PLUS") else 0
        deepest = max(deepest, depth + signs)
    if deepest > MAX_DEPTH:
        raise WhereError(f"where: {shown(text)} has {deepest} levels of brackets or signs; expected at most {MAX_DEPTH}")


def _place(error: Exception) -> str:
    problems = error.errors if isinstance(error, ParseError) else []
    if not problems or problems[0].get("start_context") is None:
        return ""
    found = problems[0].get("highlight") or "its end"
    return f" at character {len(problems[0]['start_context']) + 1} ({found})"


def _said(error: Exception) -> str:
    problems = error.errors if isinstance(error, ParseError) else []
    said = str(problems[0].get("description") or "") if problems else str(error).splitlines()[0]
    return said.strip().rstrip(".:") or "it is not SQL"


def shown(text: str) -> str:
    """A text for a message, cut where it is long."""
    return repr(text) if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]!r}..."
