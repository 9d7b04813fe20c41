"""`tlray extract`: from its config to its result."""

import contextlib
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlray.config import ExtractConfig, RunConfig
from tlray.errors import ConcurrentWriteError, SourceError, TooManyFailuresError
from tlray.extraction.commit import Committer
from tlray.extraction.placement import starts_cluster, works_here
from tlray.extraction.plan.backlogs import find_backlogs
from tlray.extraction.plan.plan import Backlog, Plan
from tlray.extraction.report import Resources
from tlray.extraction.stop import Stop
from tlray.extraction.totals import Totals
from tlray.lake.image.resize import check_preprocessing
from tlray.lake.source.read_images import ReadSpec
from tlray.lake.source.source import Source, open_source
from tlray.lake.storage.local_copy import local_copy
from tlray.lake.storage.uri import to_uri
from tlray.lake.table.lease import hold
from tlray.lake.table.maintenance import optimize
from tlray.lake.table.recipe_check import check_recipe
from tlray.lake.table.table import Table
from tlray.progress import Progress, say

if TYPE_CHECKING:
    from tlray.extraction.on_ray.run import Workers
    from tlray.extraction.target import Work
    from tlray.extraction.worker.pieces import Piece, WrittenParts
    from tlray.models.backbones import Backbone

Engine = Callable[[Plan], Generator["Piece[WrittenParts]", None, None]]


def extract(config: ExtractConfig) -> dict[str, Any]:
    """Bring the table to where its source is.

    Args:
        config: of the command.

    Returns:
        The command's JSON object.

    Raises:
        ConfigError: the input is wrong; nothing was started.
        TooManyFailuresError: more images failed than allowed; all that was done is committed.
        StoppedError: SIGTERM asked for it; likewise.
        TlrayError: the run could not go on; what was committed stays, and the same command goes on from there.
    """

    def prepare() -> "Work":
        from tlray.extraction.target import Work
        from tlray.models.backbones import resolve_backbone

        return Work(resolve_backbone(config.recipe, local_copy))

    return bring_up_to_date(config, config.table, prepare)


def bring_up_to_date(config: RunConfig, table: str, prepare: Callable[[], "Work"]) -> dict[str, Any]:
    """Bring any table to where its source is; returns and raises as `extract` does.

    Args:
        config: of the run.
        table: URI or path.
        prepare: makes what is to be done; called after the cheap checks, as torch takes seconds to import.
    """
    with Stop() as stop, contextlib.ExitStack() as stack:
        return _bring_up_to_date(config, to_uri(table), prepare, stop, stack)


def _bring_up_to_date(
    config: RunConfig, table_uri: str, prepare: Callable[[], "Work"], stop: Stop, stack: contextlib.ExitStack
) -> dict[str, Any]:
    began = time.monotonic()
    source = open_source(config.source)
    table = Table.open_or_none(table_uri)
    if table is None and next(source.pages(), None) is None:  # a source that cannot be listed leaves nothing there
        raise SourceError(f"{source.uri} has no name from source.keys_from on and before source.keys_to; expected one")
    work, workers = _prepared(config, table, prepare, stop, stack)
    recipe = work.backbone.recipe
    check_preprocessing(recipe.preprocessing)
    if table is not None:
        check_recipe(table.recipe_file, recipe, table_uri, output=work.output)
    spec = ReadSpec.of(source, recipe.preprocessing)
    totals = Totals()
    result: dict[str, Any] = {"table": table_uri, **work.ids}
    if config.dry_run:
        from tlray.extraction.plan.estimate import estimate_seconds

        estimate = estimate_seconds(_backlogs(config, source, table, totals), spec, work.backbone)
        return result | totals.counts | {"dry_run": True, **estimate}
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    with hold(table_uri, run_id, wait=config.wait, seconds=config.lease_seconds) as lease:
        table = Table.open_or_none(table_uri)  # as it is now that nobody else writes to it
        is_ready, committer, engine = workers is not None, None, None
        for backlog in _backlogs(config, source, table, totals):
            table = table or work.create_table(table_uri)
            committer = committer or Committer(table, run_id, guard=lease.check, describe=totals.describe)
            if backlog.is_empty:
                continue
            if not is_ready:
                workers, is_ready = stack.enter_context(_workers(config)), True
                stop.listen()  # Ray has set a handler of its own
            if workers is not None:
                totals.resources = Resources(workers.slots, workers.actors * workers.gpus)
            plan = backlog.cut(unit_images=spec.batch_images, slots=workers.slots if workers else os.cpu_count() or 1)
            say(f"{plan.todo} to embed in {len(plan.units)} units, {plan.todo_bytes / 1e6:.1f} MB")
            committer.start(plan)
            if plan.units and engine is None:
                engine = _engine(spec, table, work.backbone, workers, run_id)
            with contextlib.closing(_pieces(plan, engine)) as pieces:
                _run(config, plan, pieces, table, committer, totals, stop, left=backlog.left)
        assert table is not None
        if totals.is_empty:
            say("nothing to do: the table is where its source is")
        else:
            _compact(table)
    seconds = time.monotonic() - began
    return (
        result
        | totals.counts
        | {
            "version": table.version,
            "ok": totals.images - totals.failed,
            "failed": totals.failed,
            "failures": dict(totals.failures),
            "seconds": round(seconds, 3),
            "images_per_second": round(totals.images / seconds, 3),
            **totals.report(),
        }
    )


def _prepared(
    config: RunConfig, table: Table | None, prepare: Callable[[], "Work"], stop: Stop, stack: contextlib.ExitStack
) -> tuple["Work", "Workers | None"]:
    """The work; and for a new table the workers of a cluster of one's own, which starts meanwhile: both take seconds."""
    if table is not None or config.dry_run or not starts_cluster(config.local):
        return prepare(), None
    joining = _workers(config)  # imports ray, which a thread that imports torch would slow down
    with ThreadPoolExecutor(1) as threads:
        work = threads.submit(prepare)
        workers = stack.enter_context(joining)
        stop.listen()  # Ray has set a handler of its own
        return work.result(), workers


def _workers(config: RunConfig) -> AbstractContextManager["Workers | None"]:
    if works_here(config.local):
        return nullcontext()
    from tlray.extraction.on_ray.run import cluster  # ray is slow to import, and one process does without it

    return cluster()


def _backlogs(config: RunConfig, source: Source, table: Table | None, totals: Totals) -> Iterator[Backlog]:
    """How the source differs from the table, a bounded piece of work after the other; adds to the counts."""
    with tempfile.TemporaryDirectory(prefix="tlray-") as scratch:
        # What the store lists is there, whatever an earlier request for it was told.
        codes = {*config.retry_failed, *(["not_found"] if source.asks_the_store else [])}
        found = find_backlogs(source, table, Path(scratch), retry_codes=codes, policy=config.policy)
        while True:
            began = time.monotonic()
            backlog = next(found, None)
            totals.seconds.update({"list": time.monotonic() - began})
            if backlog is None:
                return
            totals.counts.update(backlog.counts)
            left = f"; {backlog.left} more to compare" if backlog.left else ""
            say(", ".join(f"{count} {name}" for name, count in backlog.counts.items()) + left)
            yield backlog


def _run(
    config: RunConfig,
    plan: Plan,
    pieces: Iterator["Piece[WrittenParts]"],
    table: Table,
    committer: Committer,
    totals: Totals,
    stop: Stop,
    *,
    left: int,
) -> None:
    """Work a plan off and commit as it goes; whatever ends it, finished groups are committed first.

    As many images as are `left`, which are not compared with the table yet, may follow.
    """
    total_is_known = plan.kind == "images"
    todo = totals.counts["new"] + totals.counts["changed"]
    began, before_seconds, is_first = time.monotonic(), totals.run_seconds, not totals.images
    with Progress(plan.todo, total_is_known=total_is_known) as progress:
        try:
            for piece in pieces:
                with stop.held():
                    if not committer.add(piece):
                        continue
                    totals.add(piece)
                    totals.run_seconds = before_seconds + time.monotonic() - began
                    if is_first:
                        totals.start_seconds, is_first = totals.run_seconds, False
                    committer.flush()
                    totals.commit_seconds = committer.seconds
                progress.update(piece.content.images, sum(piece.content.failures.values()), table.version)
                if total_is_known:
                    _check_failures(config, table, totals, todo + left)
        finally:
            with stop.held():
                committer.flush(now=True)
                totals.commit_seconds = committer.seconds
    if not left:
        _check_failures(config, table, totals, todo if total_is_known else totals.images)


def _compact(table: Table) -> None:
    try:
        optimize(table, only_if_many=True)
    except ConcurrentWriteError as error:
        say(f"small parts stay as they are until the next run: {error}")


def _engine(spec: ReadSpec, table: Table, backbone: "Backbone", workers: "Workers | None", run_id: str) -> Engine:
    """What works off plans, one after the other; in this process its encoder is made once for all of them."""
    if workers is None:
        from tlray.extraction.in_process import run_locally
        from tlray.extraction.worker.scoring_encoder import with_head
        from tlray.extraction.worker.unit_worker import UnitWorker
        from tlray.models.encoder.golden import make_encoder

        lanes = os.cpu_count() or 1
        encoder = make_encoder(table.recipe_file, local_copy, where="this machine", backbone=backbone, lanes=lanes)
        scoring = with_head(encoder, table.recipe_file, table.uri)
        worker = UnitWorker(scoring, encoder, spec, table.uri, table.recipe_file, run_id)
        return lambda plan: run_locally(plan, worker, lanes)
    from tlray.extraction.on_ray.run import run_on_ray

    return lambda plan: run_on_ray(plan, spec, table, backbone.recipe.weights, workers, run_id)


def _pieces(plan: Plan, engine: Engine | None) -> Generator["Piece[WrittenParts]", None, None]:
    """Written pieces, none of a plan that only deletes; closed early, their making ends."""
    if plan.units:
        assert engine is not None
        yield from engine(plan)


def _check_failures(config: RunConfig, table: Table, totals: Totals, total: int) -> None:
    if totals.failed <= config.max_failed_fraction * total:
        return
    codes = ", ".join(f"{count} {code}" for code, count in totals.failures.most_common())
    raise TooManyFailuresError(
        f"{totals.failed} of {total} images failed ({codes}), more than max_failed_fraction={config.max_failed_fraction}; "
        f"their rows in {table.uri} (status=failed) say why. Mend or exclude them, or give a larger --max-failed-fraction, "
        "and run the same command again: it goes on from here"
    )
