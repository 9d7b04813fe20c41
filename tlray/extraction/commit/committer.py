"""What makes written units visible: each once, whatever Ray executes again, together with the rows that it replaces."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tlray.errors import TlrayError
from tlray.extraction.commit.joins import Joins, is_enough
from tlray.extraction.commit.rewrites import Rewrites, Rewriting
from tlray.extraction.plan.plan import Group
from tlray.extraction.worker.pieces import Piece, WrittenParts
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import join
from tlray.lake.table.log.delta_log import COMMIT_INTERVAL_SECONDS
from tlray.lake.table.parts import Change, Part
from tlray.lake.table.rewrite import MANY_SMALL_PARTS, Submit, in_this_thread, is_whole
from tlray.lake.table.table import Table

COMMIT_SHARE = 0.01
"""The share of a run's time that its commits may take: where they take long, they come less often."""

REWRITTEN_BYTES = 2**29
"""How much of parts that are only written again, as rows of them go or get other values: so much at once, which takes two cores
some ten seconds, is what a killed run repeats at most."""

HOLD_SECONDS = 30.0
"""Units wait so long for others with which they make a whole part, if at their pace it will be made in that time."""


@dataclass
class _Waiting:
    """Written units that replace nothing and that no reader sees yet.

    Attributes:
        since: when the first of them came, by the committer's clock.
        units: how many.
        parts: theirs.
    """

    since: float = 0.0
    units: int = 0
    parts: list[Part] = field(default_factory=list)

    def of(self, status: str) -> list[Part]:
        """The parts that have a status, `ok` or `failed`."""
        return [part for part in self.parts if part.status == status]


@dataclass
class _Batch:
    """What the next commit makes visible.

    Attributes:
        units: how many.
        add: their parts, joined or as they were written.
        obsolete: files that were joined before anybody could see them.
        exchanged: small parts in the table, with the joined ones that take their place.
    """

    units: int = 0
    add: list[Part] = field(default_factory=list)
    obsolete: list[Part] = field(default_factory=list)
    exchanged: list[tuple[Sequence[Part], Sequence[Part]]] = field(default_factory=list)


class Committer:
    """Collects written pieces and commits complete groups every few seconds; one for all plans of a run.

    Args:
        table: that is committed to; it moves on to the new version with each commit.
        run_id: of the run.
        submit: has a worker write parts again.
        guard: called right before each commit; raises where the run may not write any more.
        describe: returns what the log keeps of the run so far, beside its id.
        committed: called after each commit with the number of rows of written units that it added.
        clock: returns seconds.
        fields: that the table is to have, from the first commit of rows on.
    """

    def __init__(
        self,
        table: Table,
        run_id: str,
        *,
        submit: Submit = in_this_thread,
        guard: Callable[[], None] = lambda: None,
        describe: Callable[[], dict[str, Any]] = dict,
        committed: Callable[[int], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        fields: Sequence[pa.Field] = (),
    ) -> None:
        self._table = table
        self._run_id = run_id
        self._guard = guard
        self._describe = describe
        self._committed = committed
        self._clock = clock
        self._fields = fields
        self._sequence = 0
        self._last_commit = clock()
        self._interval_seconds = COMMIT_INTERVAL_SECONDS
        self._rewrites = Rewrites(submit, table.uri, table.recipe_file.table_id, run_id)
        self._replacing: list[tuple[Group, list[Part]]] = []
        self._waiting = _Waiting()
        self._joins = Joins(submit, table.uri, table.recipe_file.table_id, run_id)
        self._pieces: dict[int, dict[int, Sequence[Part]]] = {}
        self._broken = False

    def start(self, groups: Sequence[Group]) -> None:
        """Begin with the groups of a plan. Of those before, incomplete ones are dropped; complete ones are committed in time.

        Raises:
            TlrayError: as `flush`.
        """
        while self._replacing:  # each plan names a part's stale rows once, but two may name the same part
            self._commit_rows(_Batch(), *self._some_replacing())
        self._group_of = {unit: group for group in groups for unit in group.units}
        self._pieces = {}
        self._piece_counts: dict[int, int] = {}
        self._open_units = {id(group): len(group.units) for group in groups}
        self._replacing += [(group, []) for group in groups if not group.units]
        self._done_units: set[int] = set()

    @property
    def missing_units(self) -> int:
        """Units of the plan that are yet to come."""
        return sum(self._open_units.values())

    @property
    def waiting_units(self) -> int:
        """Finished units that are not committed yet."""
        return self._waiting.units + self._joins.units + sum(len(group.units) for group, _ in self._replacing)

    def add(self, piece: Piece[WrittenParts]) -> bool:
        """Take a written piece, which is committed with its group later.

        Returns:
            False if the piece is known already: Ray may execute a task twice, and only the first result counts.
        """
        pieces = self._pieces.setdefault(piece.unit, {})
        if piece.unit in self._done_units or piece.index in pieces:
            return False
        pieces[piece.index] = piece.content.parts
        if piece.is_last:
            self._piece_counts[piece.unit] = piece.index + 1
        if len(pieces) == self._piece_counts.get(piece.unit):
            group = self._group_of[piece.unit]
            self._open_units[id(group)] -= 1
            if not self._open_units[id(group)]:
                self._complete(group)
        return True

    def _complete(self, group: Group) -> None:
        self._done_units.update(group.units)
        parts = [part for unit in group.units for _, some in sorted(self._pieces.pop(unit).items()) for part in some]
        if group.stale:
            self._replacing.append((group, parts))
            return
        waiting = self._waiting
        waiting.since = waiting.since if waiting.units else self._clock()
        waiting.units += len(group.units)
        waiting.parts += parts
        if is_enough(waiting.of("ok")) or is_enough(waiting.of("failed")):
            self._join_waiting()

    def _join_waiting(self) -> None:
        self._joins.start(self._waiting.parts, units=self._waiting.units)
        self._waiting = _Waiting()

    def flush(self, *, now: bool = False) -> bool:
        """Commit what is complete, if the interval has passed; of parts that are only written again, not too many at once.

        Args:
            now: wait neither for the interval nor for units and joins that would make larger parts.

        Returns:
            Whether there was a commit.

        Raises:
            TlrayError: the guard's, or `Table.commit`'s; nothing more is committed after it.
        """
        if self._broken or not (now or self._clock() - self._last_commit >= self._interval_seconds):
            return False
        began = self._clock()
        groups, rewriting = self._some_replacing()  # first, as it can fail, and the rest then waits for the next call
        batch = self._gather(now=now)
        if not (batch.units or batch.exchanged or groups):
            return False
        if batch.units or groups:
            self._commit_rows(batch, groups, rewriting)
        if batch.exchanged:
            add = [part for _, joined in batch.exchanged for part in joined]
            remove = [part for small, _ in batch.exchanged for part in small]
            self._commit(Change(add, remove, data_change=False), {"joined": len(remove)})
            self._joins.committed(add)
        self._last_commit = self._clock()
        self._interval_seconds = max(COMMIT_INTERVAL_SECONDS, (self._last_commit - began) / COMMIT_SHARE)
        return True

    def _some_replacing(self) -> tuple[list[tuple[Group, list[Part]]], Rewriting]:
        """Groups for the next commit, and their parts, written again.

        All of units that are done, and others until their parts are REWRITTEN_BYTES large.
        """
        taken, left, size_bytes = [], [], 0
        for group, parts in self._replacing:
            if group.units or size_bytes < REWRITTEN_BYTES:
                taken.append((group, parts))
                size_bytes += 0 if group.units else sum(stale.part.size_bytes for stale in group.stale)
            else:
                left.append((group, parts))
        self._replacing = left
        return taken, self._rewrites.without([stale for group, _ in taken for stale in group.stale])

    def finish(self, undisturbed: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Commit all, when no more pieces come; small parts are joined first, where they are many.

        Args:
            undisturbed: makes what surrounds each commit, so that a signal is heard between them.

        Raises:
            TlrayError: as `flush`.
        """
        while self._replacing and not self._broken:
            with undisturbed():
                self.flush(now=True)
        if len(self._waiting.parts) >= MANY_SMALL_PARTS:
            self._join_waiting()
        self._joins.wait()
        with undisturbed():
            self.flush(now=True)
            self._joins.exchange_left(MANY_SMALL_PARTS)
        self._joins.wait()
        with undisturbed():
            self.flush(now=True)

    def _gather(self, *, now: bool) -> _Batch:
        batch = _Batch()
        for joining in self._joins.ended():
            joined = joining.result()
            batch.units += joining.units
            if not joining.units:
                batch.exchanged += [(joining.sources, joined)] if joined else []
            elif joined is None:
                batch.add += joining.sources
            else:
                batch.add += joined
                batch.obsolete += [part for part in joining.sources if part not in joined]
        for joining in self._joins.abandon() if now else ():
            batch.units += joining.units
            batch.add += joining.sources
        if now or not self._is_held():
            batch.units += self._waiting.units
            batch.add += self._waiting.parts
            self._waiting = _Waiting()
        return batch

    def _is_held(self) -> bool:
        """Whether what waits will soon be a whole part, at the pace at which it came."""
        parts, age_seconds = self._waiting.of("ok"), self._clock() - self._waiting.since
        more = HOLD_SECONDS / max(age_seconds, COMMIT_INTERVAL_SECONDS)
        rows, size_bytes = sum(part.rows for part in parts), sum(part.size_bytes for part in parts)
        return age_seconds < HOLD_SECONDS and is_whole(int(rows * more), int(size_bytes * more))

    def _commit_rows(self, batch: _Batch, groups: Sequence[tuple[Group, list[Part]]], rewriting: Rewriting) -> None:
        add = [*batch.add, *(part for _, parts in groups for part in parts)]
        units = batch.units + sum(len(group.units) for group, _ in groups)
        self._commit(
            Change([*add, *rewriting.kept], rewriting.removed, fields=self._fields),
            {"units": units, **self._describe()},
            rows=sum(part.rows for part in add),
        )
        self._rewrites.are_committed(rewriting)
        self._joins.committed(add)
        if batch.obsolete:
            # Where that is not allowed, they stay until `vacuum` finds them.
            with suppress(TlrayError):
                open_store(self._table.uri).delete(join(self._table.uri, part.path) for part in batch.obsolete)

    def _commit(self, change: Change, info: dict[str, Any], *, rows: int = 0) -> None:
        self._sequence += 1
        self._broken = True  # whatever goes wrong in a commit, nothing may be committed on top of it
        self._guard()
        self._table.commit(change, app_id=self._run_id, sequence=self._sequence, info={"run": self._run_id, **info})
        self._broken = False
        self._committed(rows)
