"""A run: opened, worked off, and asked for its result."""

import contextlib
import tempfile
import uuid
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlray.columns.column import fields_of
from tlray.config import RunConfig
from tlray.errors import GO_ON, AccessError, ConcurrentWriteError, StorageError, TlrayError
from tlray.extraction.commit.committer import Committer
from tlray.extraction.plan.backlog import Backlog
from tlray.extraction.plan.compare import find_backlogs
from tlray.extraction.plan.plan import Plan
from tlray.extraction.run.deadline import Deadline, kept
from tlray.extraction.run.failures import check_failures, is_hopeless
from tlray.extraction.run.inputs import Inputs, columns_of
from tlray.extraction.run.result import columns_in, left_out_of
from tlray.extraction.run.totals import Totals
from tlray.extraction.run.workplace import Engine, Workplace
from tlray.lake.place.lease import Lease, hold
from tlray.lake.source.source import Source
from tlray.lake.table.maintenance import optimize
from tlray.lake.table.row_identities.external_sort import RANGE_ROWS, TEXT_RANGE_ROWS
from tlray.lake.table.table import Table
from tlray.progress import Progress, readable_seconds, readable_size, say

if TYPE_CHECKING:
    from tlray.extraction.worker.pieces import Piece, WrittenParts


def backlogs_of(source: Source, table: Table | None, config: RunConfig, totals: Totals) -> Iterator[Backlog]:
    """What a table lacks, a bounded piece of work after the other; at least one, though it may be empty.

    Args:
        source: what there should be.
        table: what there is, as it is now.
        config: of the run: what is tried again, and the policy on deleted and changed images.
        totals: of the run; gets the counts, and the time that listing took.
    """
    with tempfile.TemporaryDirectory(prefix="tlray-") as scratch:
        # What the store lists is there, whatever an earlier request for it was told.
        codes = {*config.retry_failed, *(["not_found"] if source.asks_the_store else [])}
        found = find_backlogs(
            source,
            table,
            Path(scratch),
            retry_codes=codes,
            policy=config.policy,
            budget=TEXT_RANGE_ROWS if source.format == "rows" else RANGE_ROWS,
            report=totals.listing,
            columns=columns_of(source, table) if source.kind == "images" else (),
        )
        totals.listing.things = source.config.things
        lines = totals.listing.lines
        while True:
            with totals.timed("list"):
                backlog = next(found, None)
            for line in lines() if backlog else totals.listing.closing_lines():
                say(line)
            if backlog is None:
                return
            lines = list  # all is listed when the first backlog comes, and said once
            totals.counts.update(backlog.counts)
            left = f"; {backlog.left} more to compare" if backlog.left else ""
            say(", ".join(f"{count} {name}" for name, count in backlog.counts.items()) + left)
            yield backlog


@contextlib.contextmanager
def named_run(what: str) -> Iterator[str]:
    """Name a run before it does anything: in its log, and in the errors that end it.

    Args:
        what: it is to do, for the log.

    Yields:
        Its id, which also begins the names of its parts, and is in its commits and its lease.
    """
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    say(f"run {run_id}: {what}")
    try:
        yield run_id
    except TlrayError as error:
        error.add_note(f"run {run_id}")
        raise


class Run:
    """One execution of `extract` or `predict`, which alone writes to its table. `open` makes one.

    Args:
        inputs: checked.
        config: of the run.
        workplace: where its units are worked on.
        totals: of what it has done.
        run_id: that no other run has.
        lease: its hold on the table.
        deadline: by which it is to be done, if by any.
    """

    def __init__(
        self,
        inputs: Inputs,
        config: RunConfig,
        workplace: Workplace,
        totals: Totals,
        run_id: str,
        lease: Lease,
        deadline: Deadline | None,
    ) -> None:
        self._inputs = inputs.as_now()  # as nobody else writes to the table now
        self._config = config
        self._workplace = workplace
        self._totals = totals
        self._run_id = run_id
        self._lease = lease
        self._deadline = deadline
        self._engine: Engine | None = None
        self._found = self._inputs.table

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        inputs: Inputs,
        config: RunConfig,
        workplace: Workplace,
        totals: Totals,
        run_id: str,
        deadline: Deadline | None = None,
    ) -> Iterator["Run"]:
        """Take hold of the table for the time of a run.

        Raises:
            TableLockedError: another run has it.
            StoppedError: it was waited for until the deadline.
        """
        holding = hold(inputs.table_uri, run_id, wait=config.wait, seconds=config.lease_seconds, tell=say)
        with contextlib.ExitStack() as stack:
            with kept(deadline, workplace.stop):
                lease = stack.enter_context(holding)
            yield cls(inputs, config, workplace, totals, run_id, lease, deadline)

    def work_off(self) -> None:
        """Do all that the table lacks, and commit as it goes; whatever ends it, finished groups are committed first.

        Raises:
            TooManyFailuresError: most images fail, and more than may.
            StoppedError: its time is over.
            TlrayError: the run cannot go on.
        """
        with self._committed_if_it_fails():
            with kept(self._deadline, self._workplace.stop):
                for backlog in backlogs_of(self._inputs.source, self._found, self._config, self._totals):
                    with self._totals.work():
                        self._work_off(backlog)
            with self._totals.work(), self._totals.timed("commit"):
                self._committer.finish(self._workplace.stop.held)

    def _work_off(self, backlog: Backlog) -> None:
        committer = self._committer  # a new table is made now, as its source could be listed
        if backlog.is_empty:
            return
        plan = backlog.cut(unit_images=self._inputs.read_spec.batch_images, slots=self._workplace.slots)
        if plan.units:
            units = f"{len(plan.units)} unit{'s' if len(plan.units) > 1 else ''}"
            say(f"{plan.todo} to embed in {units}, {readable_size(plan.todo_bytes, unknown=plan.unsized)}")
        if rewritten := backlog.counts.get("rewritten"):
            say(f"{rewritten} rows to be written again with other values, and with the vectors that they have")
        self._totals.units_left = len(plan.units)
        committer.start(plan.groups)
        if self._deadline:
            self._deadline.expect(plan.todo + backlog.left)
        with (
            contextlib.closing(self._pieces(plan)) as pieces,
            Progress(plan.todo, total_is_known=plan.kind == "images", things=self._things) as progress,
        ):
            for piece in pieces:
                if self._take(piece):
                    failed = sum(piece.content.failures.values())
                    progress.update(piece.content.images, failed, self._table.version)
                    if self._deadline:
                        self._deadline.has_done(piece.content.images if plan.kind == "images" else int(piece.is_last))
                    self._check_hope(plan, left=backlog.left)
        if missing := committer.missing_units:
            raise self._deadline.undone() if self._deadline else StorageError(f"{missing} units did not come back; {GO_ON}")

    def result(self) -> dict[str, Any]:
        """The command's JSON object, when all backlogs are worked off; small parts are joined first.

        Raises:
            TooManyFailuresError: more images failed than may.
        """
        totals = self._totals
        if totals.has_changes:
            with totals.timed("compact"):
                self._compact()
                self._table.log.leave_checkpoint()
        else:
            say("nothing to do: the table is where its source is")
        left_out = left_out_of(self._inputs.source, totals)
        if left_out["unlabelled"] and not self._inputs.source.gives_labels:
            say(f"{left_out['unlabelled']} of the {self._things} embedded have no label")
        check_failures(totals, self._config.max_failed_fraction, self._table.uri, things=self._things)
        if totals.has_changes:
            done = f"{totals.images - totals.failed} ok, {totals.failed} failed; table version {self._table.version}"
            say(f"done in {readable_seconds(totals.run_seconds)}: {done}")
        run, version = {"run": self._run_id}, {"version": self._table.version}
        columns = columns_in(self._inputs, totals)
        in_time = {"deadline": self._deadline.result()} if self._deadline else {}
        return {**self._inputs.ids, **run, **totals.counts, **left_out, **columns, **version, **in_time, **totals.result()}

    @property
    def _things(self) -> str:
        return self._inputs.source.config.things

    @cached_property
    def _table(self) -> Table:
        return self._found or self._inputs.target.create_table(self._inputs.table_uri)

    @cached_property
    def _committer(self) -> Committer:
        committer = Committer(
            self._table,
            self._run_id,
            submit=self._workplace.submit,
            guard=self._lease.check,
            describe=self._totals.describe,
            committed=self._totals.has_committed,
            fields=fields_of(self._inputs.source.columns),
        )
        self._totals.waiting_units = lambda: committer.waiting_units
        return committer

    def _engine_for(self, plan: Plan) -> Engine:
        """What works off this plan and all after it."""
        if self._engine is None:
            inputs, closes = self._inputs, self._deadline.closes if self._deadline else None
            self._engine = self._workplace.engine(
                *(inputs.read_spec, self._table, inputs.target.backbone, self._run_id, closes),
                computed_by=self._config.engine,
                images=plan.about_images,
            )
        return self._engine

    def _pieces(self, plan: Plan) -> Generator["Piece[WrittenParts]", None, None]:
        """Written pieces, none of a plan that only deletes; closed early, their making ends."""
        self._totals.resources = self._workplace.resources
        if plan.units:
            engine = self._engine_for(plan)
            if self._workplace.is_here:
                self._totals.has_started()
            yield from engine(plan)

    def _take(self, piece: "Piece[WrittenParts]") -> bool:
        """Take a written piece, and commit if it is time; False if it was known already."""
        with self._workplace.stop.held():
            if not self._committer.add(piece):
                return False
            self._totals.add(piece)
            self._totals.resources = self._workplace.resources
            self._commit(now=False)
            return True

    @contextlib.contextmanager
    def _committed_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if "_committer" in self.__dict__:  # there is a table
                with self._workplace.stop.held():
                    self._commit(now=True)
            raise

    def _commit(self, *, now: bool) -> None:
        with self._totals.timed("commit"):
            self._committer.flush(now=now)

    def _check_hope(self, plan: Plan, *, left: int) -> None:
        """End a run early that cannot end well any more.

        As many images as are `left`, which are not compared with the table yet, may follow.
        """
        if plan.kind == "images":
            most = self._totals.todo + left
            if is_hopeless(self._totals, self._config.max_failed_fraction, most):
                check_failures(self._totals, self._config.max_failed_fraction, self._table.uri, most, things=self._things)

    def _compact(self) -> None:
        """Join small parts. All is committed, and the next run tries again, so a store that fails now does not fail the run."""
        try:
            optimize(self._table, only_if_many=True, submit=self._workplace.submit, tell=say)
        except (AccessError, ConcurrentWriteError, StorageError) as error:
            say(f"small parts stay as they are until the next run: {error}")
