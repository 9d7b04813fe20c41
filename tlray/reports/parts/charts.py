"""Charts as inline SVG: drawn narrow, so that their text can be read on a phone; colours come from the page's style.

A unit is about a CSS pixel on a phone. Texts are escaped; every drawing says in words what it shows (`aria-label`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 440, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 14, 12, 40
_INKS = ("a", "b", "c", "d")
_TICKS = 5
_CHARACTER = 6.6
"""Width of a letter, about, at the size of the charts' text."""

MAX_CELLS = 40
"""Classes of a confusion matrix; of more nothing could be read."""


@dataclass(frozen=True)
class Line:
    """A curve of a chart, and its intervals where it has some.

    Attributes:
        name: in the legend.
        xs: ascending.
        ys: likewise many.
        lows: lower ends of intervals, or none.
        highs: upper ends.
        dashed: draw it broken, as a mark to compare with.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    lows: Sequence[float] = ()
    highs: Sequence[float] = ()
    dashed: bool = False


def lines(some: Sequence[Line], *, x: str, y: str, log_x: bool = False, unit: bool = False) -> Markup:
    """Draw curves over a common axis.

    Args:
        some: at least one with a point.
        x: what the horizontal axis is.
        y: what the vertical axis is.
        log_x: whether x is drawn by its logarithm.
        unit: whether y goes from 0 to 1.
    """
    place_x = _log if log_x else float
    xs = [place_x(value) for one in some for value in one.xs]
    ys = [value for one in some for value in (*one.ys, *one.lows, *one.highs) if math.isfinite(value)]
    x_axis = _Axis.of(min(xs), max(xs), _LEFT, WIDTH - _RIGHT)
    y_axis = _Axis(0.0, 1.0, HEIGHT - _BOTTOM, _TOP) if unit else _Axis.of(min(ys), max(ys), HEIGHT - _BOTTOM, _TOP)
    parts = _frame(x_axis, y_axis, x, y, sorted({value for one in some for value in one.xs}) if log_x else None)
    for ink, one in zip(_cycle(len(some)), some, strict=True):
        points = [(x_axis.at(place_x(a)), y_axis.at(b)) for a, b in zip(one.xs, one.ys, strict=True) if math.isfinite(b)]
        if one.lows:
            upper = [(x_axis.at(place_x(a)), y_axis.at(b)) for a, b in zip(one.xs, one.highs, strict=True)]
            lower = [(x_axis.at(place_x(a)), y_axis.at(b)) for a, b in zip(one.xs, one.lows, strict=True)]
            parts.append(f'<polygon class="band" points="{_points([*upper, *lower[::-1]])}"/>')
        dash = " dash" if one.dashed else ""
        parts.append(f'<polyline class="line {ink}{dash}" points="{_points(points)}"/>')
        if len(points) <= 30 and not one.dashed:
            parts += [f'<circle class="f{ink}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in points]
    legend = [(ink, one.name) for ink, one in zip(_cycle(len(some)), some, strict=True) if one.name]
    return _svg(parts + _legend(legend), HEIGHT + _legend_height(legend), f"{y} by {x}: {', '.join(one.name for one in some)}")


def bars(rows: Sequence[tuple[str, float, str]], *, what: str) -> Markup:
    """Draw values from 0 up as bars, each under its name.

    Args:
        rows: name, value and the value as text.
        what: they are.
    """
    most = max((value for _, value, _ in rows), default=0) or 1
    parts, room = [], WIDTH - 2 * _RIGHT
    for at, (name, value, text) in enumerate(rows):
        top = 34 * at
        parts.append(_text(_RIGHT, top + 13, _cut(name, room - len(text) * _CHARACTER - 12)))
        parts.append(_text(WIDTH - _RIGHT, top + 13, text, anchor="end", soft=True))
        parts.append(f'<rect class="band" x="{_RIGHT}" y="{top + 18}" width="{room}" height="9" rx="3"/>')
        parts.append(f'<rect class="fa" x="{_RIGHT}" y="{top + 18}" width="{room * value / most:.1f}" height="9" rx="3"/>')
    return _svg(parts, 34 * len(rows) + 4, f"{what}: " + "; ".join(f"{name} {text}" for name, _, text in rows))


def intervals(rows: Sequence[tuple[str, float, float, float]], marks: Sequence[tuple[str, float]] = (), *, what: str) -> Markup:
    """Draw estimates with their intervals, each under its name, and marks through all of them.

    Args:
        rows: name, low, value and high, in 0..1.
        marks: name and value of what all are compared with.
        what: the values are.
    """
    values = [value for _, *some in rows for value in some] + [value for _, value in marks]
    axis = _Axis.of(min(values), max(values), _RIGHT + 6, WIDTH - _RIGHT - 6)
    bottom = 36 * len(rows) + 6
    parts = [
        f'<line class="grid" x1="{axis.at(tick):.1f}" x2="{axis.at(tick):.1f}" y1="0" y2="{bottom}"/>' for tick in axis.ticks
    ]
    parts += [_text(axis.at(tick), bottom + 14, f"{tick:.4g}", anchor="middle", soft=True) for tick in axis.ticks]
    for ink, (_, value) in zip(("b", "c", "d"), marks, strict=False):
        parts.append(
            f'<line class="line dash {ink}" x1="{axis.at(value):.1f}" x2="{axis.at(value):.1f}" y1="0" y2="{bottom}"/>'
        )
    for at, (name, low, value, high) in enumerate(rows):
        top = 36 * at
        parts.append(_text(_RIGHT, top + 14, _cut(name, WIDTH - 2 * _RIGHT - 60)))
        parts.append(_text(WIDTH - _RIGHT, top + 14, f"{value:.3f}", anchor="end", soft=True))
        middle = top + 25
        parts.append(f'<line class="line a" x1="{axis.at(low):.1f}" x2="{axis.at(high):.1f}" y1="{middle}" y2="{middle}"/>')
        parts.append(f'<circle class="fa" cx="{axis.at(value):.1f}" cy="{middle}" r="4.5"/>')
    legend = [(ink, name) for ink, (name, _) in zip(("b", "c", "d"), marks, strict=False)]
    shift = bottom + 24 - HEIGHT
    said = "; ".join(f"{name} {value:.3f} ({low:.3f} to {high:.3f})" for name, low, value, high in rows)
    return _svg(parts + _legend(legend, shift), bottom + 22 + _legend_height(legend), f"{what}: {said}")


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Markup:
    """Draw how often each class is taken for each: a row is a true class, shaded by its share."""
    count = len(names)
    longest = min(16, max(map(len, names)))
    left = 14 + longest * _CHARACTER
    cell = (WIDTH - left - 8) / count
    bottom = cell * count + 8
    parts = []
    for row, counts in enumerate(matrix):
        total = max(1, sum(counts))
        parts.append(_text(left - 6, 8 + cell * (row + 0.5) + 4, _cut(names[row], longest * _CHARACTER), anchor="end"))
        for column, number in enumerate(counts):
            x, y, share = left + cell * column, 8 + cell * row, number / total
            ink = "fa" if row == column else "fb"
            parts.append(f'<rect class="grid" x="{x:.1f}" y="{y:.1f}" width="{cell:.1f}" height="{cell:.1f}"/>')
            if number:
                shown = 0.12 + 0.88 * share
                size = f'width="{cell:.1f}" height="{cell:.1f}"'
                parts.append(f'<rect class="{ink}" opacity="{shown:.2f}" x="{x:.1f}" y="{y:.1f}" {size}/>')
                if cell >= 20:
                    on = ' class="on"' if share > 0.5 else ' class="in"'
                    parts.append(
                        f'<text{on} x="{x + cell / 2:.1f}" y="{y + cell / 2 + 4:.1f}" text-anchor="middle">{number}</text>'
                    )
    for column, name in enumerate(names):
        x = left + cell * (column + 0.5) + 4
        text = escape(_cut(name, longest * _CHARACTER))
        place = f'x="{x:.1f}" y="{bottom + 6:.1f}"'
        turned = f'transform="rotate(-60 {x:.1f} {bottom + 6:.1f})"'
        parts.append(f'<text {place} text-anchor="end" {turned}>{text}</text>')
    return _svg(parts, bottom + 20 + longest * _CHARACTER * 0.87, "confusion: rows are true classes, columns predicted ones")


def quadrants(x: float, y: float, corners: Sequence[str], *, x_label: str, y_label: str, mark: str) -> Markup:
    """Draw a square of four fields with one mark in it.

    Args:
        x: of the mark, 0 to 1 from left to right.
        y: of it, 0 to 1 from bottom to top.
        corners: what stands in the fields: top left, top right, bottom left, bottom right; lines apart by a line break.
        x_label: what grows to the right.
        y_label: what grows upwards.
        mark: the mark's name.
    """
    left, top, right, bottom = 30, 8, WIDTH - 8, 268
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    parts = [
        f'<rect class="grid" x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"/>',
        f'<line class="grid" x1="{middle_x}" x2="{middle_x}" y1="{top}" y2="{bottom}"/>',
        f'<line class="grid" x1="{left}" x2="{right}" y1="{middle_y}" y2="{middle_y}"/>',
    ]
    for number, text in enumerate(corners):
        words = text.split("\n")
        at_x = (left, middle_x)[number % 2] + 8
        at_y = (top + 18, bottom + 7 - 15 * len(words))[number // 2]
        parts += [_text(at_x, at_y + 15 * at, line, soft=True) for at, line in enumerate(words)]
    mark_x, mark_y = left + x * (right - left), bottom - y * (bottom - top)
    parts.append(f'<circle class="fb" opacity="0.85" cx="{mark_x:.1f}" cy="{mark_y:.1f}" r="8"/>')
    parts.append(f'<circle class="fb" cx="{left + 6}" cy="{bottom + 36}" r="5"/>{_text(left + 18, bottom + 40, mark)}')
    parts.append(_text((left + right) / 2, bottom + 20, x_label, anchor="middle"))
    parts.append(f'<text text-anchor="middle" transform="translate(18 {middle_y}) rotate(-90)">{escape(y_label)}</text>')
    return _svg(parts, bottom + 48, f"{mark} on the map: {x_label} {x:.2f}, {y_label} {y:.2f}")


@dataclass(frozen=True)
class _Axis:
    """From values to places on a drawing."""

    low: float
    high: float
    first: float
    last: float

    @classmethod
    def of(cls, low: float, high: float, first: float, last: float) -> "_Axis":
        """An axis that values fill but for a margin."""
        margin = (high - low) * 0.06 or max(abs(high) * 0.05, 0.05)
        return cls(low - margin, high + margin, first, last)

    def at(self, value: float) -> float:
        """Where a value stands on the axis, in pixels."""
        return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)

    @property
    def ticks(self) -> list[float]:
        """Round values within the axis, for its labels."""
        rough = (self.high - self.low) / _TICKS
        power = 10 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
        first = math.ceil(self.low / step)
        return [round(step * at, 12) for at in range(first, math.floor(self.high / step) + 1)]


def _frame(x_axis: _Axis, y_axis: _Axis, x: str, y: str, x_marks: Sequence[float] | None) -> list[str]:
    """Grid, ticks and names of the axes."""
    bottom, parts = HEIGHT - _BOTTOM, []
    for tick in y_axis.ticks:
        at = y_axis.at(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_text(_LEFT - 5, at + 4, f"{tick:.4g}", anchor="end", soft=True))
    marks = [(_log(mark), mark) for mark in x_marks] if x_marks is not None else [(tick, tick) for tick in x_axis.ticks]
    last = -math.inf
    for at, mark in marks:
        place = x_axis.at(at)
        if place - last >= 34:
            parts.append(_text(place, bottom + 15, f"{mark:.4g}", anchor="middle", soft=True))
            last = place
    parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, bottom + 32, x, anchor="middle"))
    parts.append(f'<text text-anchor="middle" transform="translate(11 {(_TOP + bottom) / 2}) rotate(-90)">{escape(y)}</text>')
    return parts


def _legend(entries: Sequence[tuple[str, str]], shift: float = 0) -> list[str]:
    parts = []
    for at, (ink, name) in enumerate(entries):
        y = HEIGHT + shift + 18 * at + 12
        parts.append(f'<line class="line {ink}" x1="{_RIGHT}" x2="{_RIGHT + 18}" y1="{y - 4}" y2="{y - 4}"/>')
        parts.append(_text(_RIGHT + 26, y, _cut(name, WIDTH - 60)))
    return parts


def _legend_height(entries: Sequence[tuple[str, str]]) -> int:
    return 18 * len(entries) + (8 if entries else 0)


def _cycle(count: int) -> list[str]:
    return [_INKS[at % len(_INKS)] for at in range(count)]


def _log(value: float) -> float:
    return math.log10(max(value, 1e-12))


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in points)


def _cut(text: str, room: float) -> str:
    most = max(3, int(room / _CHARACTER))
    return text if len(text) <= most else text[: most - 1] + "…"


def _text(x: float, y: float, text: str, *, anchor: str = "start", soft: bool = False) -> str:
    ink = ' class="soft"' if soft else ""
    return f'<text{ink} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], height: float, said: str) -> Markup:
    inside = "".join(parts)
    return Markup(  # noqa: S704  # all text in it is escaped above
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(said)}">{inside}</svg>'
    )
