"""The driver's side of the commit protocol: finished units become visible, each once, together with what they replace."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from tlray.lake.parts import Part, read_part, write_part
from tlray.lake.plan import Group, Plan, StaleRows
from tlray.lake.table import Change, Table

COMMIT_INTERVAL_SECONDS = 5.0
"""A killed run repeats at most this much finished work; a commit over S3 takes some tenths of a second."""


class FinishedPiece(Protocol):
    """What the committer needs to know of a piece that a worker wrote."""

    @property
    def unit(self) -> int: ...  # noqa: D102
    @property
    def index(self) -> int: ...  # noqa: D102
    @property
    def last(self) -> bool: ...  # noqa: D102
    @property
    def parts(self) -> Sequence[Part]: ...  # noqa: D102


class Committer:
    """Collects finished pieces and commits complete groups every few seconds.

    Attributes:
        rows: rows of finished units committed so far, by status.
    """

    def __init__(self, table: Table, plan: Plan, run_id: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.rows: Counter[str] = Counter()
        self._table = table
        self._run_id = run_id
        self._clock = clock
        self._sequence = 0
        self._last_commit = clock()
        self._group_of = {unit: group for group in plan.groups for unit in group.units}
        self._pieces: dict[int, dict[int, Sequence[Part]]] = {}
        self._piece_counts: dict[int, int] = {}
        self._open_units = {id(group): len(group.units) for group in plan.groups}
        self._ready: list[Group] = [group for group in plan.groups if not group.units]
        self._committed_units: set[int] = set()

    @property
    def pending(self) -> bool:
        """Whether a complete group waits for the next commit."""
        return bool(self._ready)

    def add(self, piece: FinishedPiece) -> bool:
        """Take note of a finished piece.

        Returns:
            False if it was already known: Ray may execute a task again, and only the first result counts.
        """
        pieces = self._pieces.setdefault(piece.unit, {})
        if piece.unit in self._committed_units or piece.index in pieces:
            return False
        pieces[piece.index] = piece.parts
        if piece.last:
            self._piece_counts[piece.unit] = piece.index + 1
        if len(pieces) == self._piece_counts.get(piece.unit):
            group = self._group_of[piece.unit]
            self._open_units[id(group)] -= 1
            if not self._open_units[id(group)]:
                self._ready.append(group)
        return True

    def flush(self, *, now: bool = False) -> bool:
        """Commit what is complete, if the interval has passed.

        Args:
            now: do not wait for the interval.

        Returns:
            Whether there was a commit.

        Raises:
            ConcurrentWriteError, StorageError: see `Table.commit`.
        """
        if not self._ready or not (now or self._clock() - self._last_commit >= COMMIT_INTERVAL_SECONDS):
            return False
        groups, self._ready = self._ready, []
        add: list[Part] = []
        remove: list[Part] = []
        for group in groups:
            for unit in group.units:
                add += [part for parts in self._pieces[unit].values() for part in parts]
                self._committed_units.add(unit)
                self._pieces[unit] = {}
        self.rows.update({status: sum(part.rows for part in add if part.status == status) for status in ("ok", "failed")})
        for stale in (stale for group in groups for stale in group.stale):
            remove.append(stale.part)
            add += self._rewritten(stale)
        self._sequence += 1
        self._table.commit(
            Change(add, remove), app_id=self._run_id, sequence=self._sequence, info={"run": self._run_id, "units": len(groups)}
        )
        self._last_commit = self._clock()
        return True

    def _rewritten(self, stale: StaleRows) -> list[Part]:
        """The stale part without its stale rows, as a new file; none if all of them are."""
        rows = read_part(self._table.uri, stale.part.path)
        keep = np.ones(len(rows), bool)
        keep[stale.rows] = False
        if not keep.any():
            return []
        recipe_id = self._table.recipe_file.recipe_id
        kept = rows.filter(pa.array(keep))
        return [write_part(self._table.uri, kept, status=stale.part.status, stem=f"{self._run_id}-kept", recipe_id=recipe_id)]
