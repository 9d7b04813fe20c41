"""Pictures for the model folder, as PNG; nothing where matplotlib is not installed."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from tlray.progress import say

MAX_NAMED = 40
"""Classes; names of more cannot be read."""

_INCHES_PER_CLASS = 0.32
_WRITTEN = 20
"""Classes; counts are written into the cells of no more."""


def draw_curves(curves: Mapping[str, Sequence[float]], *, best: str | None = None) -> bytes | None:
    """Draw the loss by epoch of several trainings.

    Args:
        curves: by name.
        best: name of the one that is drawn over the others, where it is among them.

    Returns:
        PNG, or None without matplotlib.
    """
    figure = _figure(6, 4)
    if figure is None:
        return None
    axes = figure.subplots()
    for name, values in curves.items():
        epochs = range(1, len(values) + 1)
        if best is None:
            axes.plot(epochs, values, label=name, marker="." if len(values) == 1 else None)
        elif name != best:
            axes.plot(epochs, values, color="0.8", linewidth=0.8)
    if best is not None and best in curves:
        axes.plot(range(1, len(curves[best]) + 1), curves[best], color="tab:blue", marker=".", label=f"best: {best}")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.set_yscale("log")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    return _png(figure)


def draw_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> bytes | None:
    """A confusion matrix, shaded by share of the true class.

    Args:
        confusion: rows are true classes.
        classes: their names.

    Returns:
        PNG, or None without matplotlib.
    """
    side = max(4.0, min(14.0, 1.5 + _INCHES_PER_CLASS * len(classes)))
    figure = _figure(side, side)
    if figure is None:
        return None
    axes = figure.subplots()
    shares = [[count / max(1, sum(row)) for count in row] for row in confusion]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= _WRITTEN:
        for at, row in enumerate(confusion):
            for other, count in enumerate(row):
                if count:
                    colour = "white" if shares[at][other] > 0.5 else "black"
                    axes.text(other, at, str(count), ha="center", va="center", fontsize=7, color=colour)
    if len(classes) <= MAX_NAMED:
        axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=7)
        axes.set_yticks(range(len(classes)), classes, fontsize=7)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return _png(figure)


def _figure(width: float, height: float) -> Any:
    """Make a figure with a canvas of its own: pyplot keeps figures and looks for a display."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        say("no pictures: matplotlib is not installed (pip install matplotlib)")
        return None
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.tight_layout()
    # Without the date and version of what drew it, the same numbers give the same bytes.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
