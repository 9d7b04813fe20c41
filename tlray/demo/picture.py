"""A picture of some queries beside their nearest neighbours."""

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image


def draw_neighbours(rows: Sequence[Sequence[tuple[bytes, str, bool]]], path: Path, title: str) -> None:
    """Draw one row a query: the query itself, then its neighbours.

    Args:
        rows: per query, (image bytes, caption, whether the label agrees with the query's).
        path: of the PNG to write.
        title: over the picture.
    """
    columns = max(map(len, rows))
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.1 * columns, 1.35 * len(rows)), squeeze=False)
    for axes_of_row, row in zip(axes, rows, strict=True):
        for position, (axis, (data, caption, agrees)) in enumerate(zip(axes_of_row, row, strict=True)):
            axis.imshow(Image.open(io.BytesIO(data)).convert("RGB"))
            axis.set_title(caption, fontsize=7, color="black" if agrees else "crimson")
            axis.set_xticks([])
            axis.set_yticks([])
            for edge in axis.spines.values():
                edge.set_visible(position == 0 or not agrees)
                edge.set_edgecolor("royalblue" if position == 0 else "crimson")
                edge.set_linewidth(2)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
