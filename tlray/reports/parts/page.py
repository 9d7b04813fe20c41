"""A page: sections of blocks, put into the template; all that it needs is inside.

Text is escaped by the template; only charts, which this package draws itself, come as markup.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from itertools import groupby
from typing import Any, ClassVar

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from tlray.version import __version__


@dataclass(frozen=True)
class Facts:
    """Names and values, side by side."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Rows:
    """A table; cells that are numbers stand to the right.

    Attributes:
        headings: of the columns.
        rows: cells as text.
        numeric: columns that hold numbers.
    """

    kind: ClassVar[str] = "rows"
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Text:
    """A paragraph; `tone` is `plain`, `good` or `bad`."""

    kind: ClassVar[str] = "text"
    text: str
    tone: str = "plain"


@dataclass(frozen=True)
class Code:
    """Lines for people to type in a terminal."""

    kind: ClassVar[str] = "code"
    lines: Sequence[str]


@dataclass(frozen=True)
class Chart:
    """A drawing, and what it shows in words."""

    kind: ClassVar[str] = "chart"
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Shot:
    """A picture of a report with its caption.

    Attributes:
        source: a data URI; empty where there is none.
        caption: what stands below it.
        title: what a pointer over it is told.
        missing: why there is no picture.
        tone: `plain`, `good` or `bad`.
    """

    source: str
    caption: str
    title: str = ""
    missing: str = ""
    tone: str = "plain"


@dataclass(frozen=True)
class Gallery:
    """Pictures of a report beside each other."""

    kind: ClassVar[str] = "gallery"
    shots: Sequence[Shot]
    heading: str = ""


Block = Facts | Rows | Text | Code | Chart | Gallery


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """What a report says, before it is HTML.

    Attributes:
        title: of the page.
        subtitle: what it is of, such as a URI.
        sections: in order.
        headline: the few numbers that one looks for first.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]
    headline: Sequence[tuple[str, str]] = field(default_factory=tuple)


def render(page: Page) -> str:
    """Make one HTML file of a report."""
    text: str = _template().render(
        page=page, made=datetime.now(UTC).isoformat(" ", "minutes").removesuffix("+00:00"), version=__version__
    )
    return text


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["batched_by_kind"] = _by_kind
    return environment.from_string((files(__package__) / "page.html").read_text(encoding="utf-8"))


def _by_kind(blocks: Sequence[Block]) -> list[tuple[str, list[Block]]]:
    """Runs of blocks of one kind: charts that follow each other stand side by side."""
    return [(kind, list(some)) for kind, some in groupby(blocks, key=lambda block: block.kind)]


def number(value: Any) -> str:
    """A value for people: thousands apart, four significant digits of a fraction."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    if value is None:
        return "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(number, value))
    return str(value)


def facts(document: dict[str, Any]) -> Facts:
    """The plain values of a JSON object; what is nested is spelled out by dotted names."""
    return Facts([(name, number(value)) for name, value in _flat(document, "")])


def _flat(document: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in document.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], (dict, list)):
            found.append((prefix + key, f"{len(value)} entries"))
        else:
            found.append((prefix + key, value))
    return found
