"""What a run still waits for, by name where that is little: an image that workers die of, again and again, is among it."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tlray.extraction.plan.plan import Unit
from tlray.extraction.worker.pieces import Piece
from tlray.progress import readable_size

FEW_UNITS = 3
"""Of more than these nothing is named, as it would be one of thousands."""


class Left:
    """The units of a plan that have not come back.

    Args:
        units: of the plan.
    """

    def __init__(self, units: Sequence[Unit]) -> None:
        self._units = {unit.index: unit for unit in units}

    def take(self, piece: Piece[Any]) -> None:
        """Note that a piece has come back."""
        if piece.is_last:
            self._units.pop(piece.unit, None)

    def __str__(self) -> str:
        units = list(self._units.values())  # a copy, as another thread asks
        if not 0 < len(units) <= FEW_UNITS:
            return f"{len(units)} units are left"
        items = pa.concat_tables([unit.items for unit in units])
        sizes = pc.fill_null(items["size_bytes"], 0)
        size_bytes = pc.max(sizes).as_py()
        largest = items["uri"][pc.index(sizes, size_bytes).as_py()].as_py()
        which = f", the largest {largest} ({readable_size(size_bytes)})" if size_bytes else ""
        return f"{len(items)} {'is' if len(items) == 1 else 'are'} left{which}"
