"""The driver's side of the commit protocol: what workers have written becomes visible once, together with what it replaces."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.errors import TableCorruptError
from tlray.extraction.plan.plan import Group, Plan, StaleRows
from tlray.extraction.worker.pieces import Piece, WrittenParts
from tlray.lake.table.parts import Change, Part, read_part, write_part
from tlray.lake.table.table import Table

COMMIT_INTERVAL_SECONDS = 5.0
"""A killed run repeats at most this much finished work; a commit over S3 takes some tenths of a second."""


@dataclass(frozen=True)
class _Rewritten:
    """What this run has made of a part that the table had when it began.

    Attributes:
        part: the one that holds the rows that are left of it; None where none are.
        gone: positions, in the original part, of the rows that are not in it any more; sorted.
    """

    part: Part | None
    gone: np.ndarray


class Committer:
    """Collects written pieces and commits complete groups every few seconds; one for all plans of a run.

    Args:
        table: that is committed to; it moves on to the new version with each commit.
        run_id: of the run.
        guard: called right before each commit; raises where the run may not write any more.
        describe: returns what the log keeps of the run so far, beside its id.
        clock: returns seconds.
    """

    def __init__(
        self,
        table: Table,
        run_id: str,
        *,
        guard: Callable[[], None] = lambda: None,
        describe: Callable[[], dict[str, Any]] = dict,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._run_id = run_id
        self._guard = guard
        self._describe = describe
        self._clock = clock
        self._sequence = 0
        self._last_commit = clock()
        self._rewritten: dict[str, _Rewritten] = {}
        self._ready: list[Group] = []
        self._broken = False

    def start(self, plan: Plan) -> None:
        """Begin with a plan: complete groups of the plan before are committed, incomplete ones are dropped.

        Raises:
            TlrayError: as `flush`.
        """
        self.flush(now=True)
        self._group_of = {unit: group for group in plan.groups for unit in group.units}
        self._pieces: dict[int, dict[int, Sequence[Part]]] = {}
        self._piece_counts: dict[int, int] = {}
        self._open_units = {id(group): len(group.units) for group in plan.groups}
        self._ready = [group for group in plan.groups if not group.units]
        self._committed_units: set[int] = set()

    @property
    def pending(self) -> bool:
        """Whether a complete group waits for the next commit."""
        return bool(self._ready)

    def add(self, piece: Piece[WrittenParts]) -> bool:
        """Take a written piece, which is committed with its group later.

        Returns:
            False if the piece is known already: Ray may execute a task twice, and only the first result counts.
        """
        pieces = self._pieces.setdefault(piece.unit, {})
        if piece.unit in self._committed_units or piece.index in pieces:
            return False
        pieces[piece.index] = piece.content.parts
        if piece.is_last:
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
            TlrayError: the guard's, or `Table.commit`'s; nothing more is committed after it.
        """
        if self._broken or not self._ready or not (now or self._clock() - self._last_commit >= COMMIT_INTERVAL_SECONDS):
            return False
        groups, self._ready = self._ready, []
        add: list[Part] = []
        for group in groups:
            for unit in group.units:
                add += [part for parts in self._pieces[unit].values() for part in parts]
                self._committed_units.add(unit)
                self._pieces[unit] = {}
        stale = [stale for group in groups for stale in group.stale]
        remove = [self._found(one.part).part for one in stale]
        rewritten = {one.part.path: self._rewrite(one) for one in stale}
        change = Change([*add, *_parts(one.part for one in rewritten.values())], _parts(remove))
        self._sequence += 1
        self._broken = True  # whatever goes wrong in a commit, nothing may be committed on top of it
        self._guard()
        info = {"run": self._run_id, "units": len(groups), **self._describe()}
        self._table.commit(change, app_id=self._run_id, sequence=self._sequence, info=info)
        self._broken = False
        self._rewritten |= rewritten
        self._last_commit = self._clock()
        return True

    def _found(self, part: Part) -> _Rewritten:
        """What this run has made of a part so far: the part itself, if nothing yet."""
        return self._rewritten.get(part.path, _Rewritten(part, np.empty(0, np.uint32)))

    def _rewrite(self, stale: StaleRows) -> _Rewritten:
        """Write a part again without its stale rows; no file if no row is left."""
        found = self._found(stale.part)
        if found.part is None:
            raise TableCorruptError(f"rows of {stale.part.path} were to go, but this run removed it already; report it")
        rows = read_part(self._table.uri, found.part.path)
        keep = np.ones(len(rows), bool)
        keep[stale.rows - np.searchsorted(found.gone, stale.rows)] = False
        gone = np.union1d(found.gone, stale.rows)
        if not keep.any():
            return _Rewritten(None, np.empty(0, np.uint32))
        recipe_id = self._table.recipe_file.table_id
        kept = rows.filter(pa.array(keep))
        stem = f"{self._run_id}-kept"
        return _Rewritten(write_part(self._table.uri, kept, status=stale.part.status, stem=stem, recipe_id=recipe_id), gone)


def _parts(parts: Iterable[Part | None]) -> list[Part]:
    return [part for part in parts if part is not None]
