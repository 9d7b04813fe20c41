"""`tlray extract`: from its config to its result."""

import os
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tlray.config import ExtractConfig
from tlray.errors import ConcurrentWriteError, TooManyFailuresError
from tlray.extract.progress import Progress, say
from tlray.lake.committer import Committer
from tlray.lake.fetch import FetchSpec
from tlray.lake.local_copy import local_copy
from tlray.lake.maintenance import optimize
from tlray.lake.plan import Difference, Plan, compare
from tlray.lake.resize import check_preprocessing
from tlray.lake.sources import open_source
from tlray.lake.storage import to_uri
from tlray.lake.table import Table, check_recipe

if TYPE_CHECKING:
    from tlray.extract.on_ray import Workers
    from tlray.extract.pieces import WrittenPiece
    from tlray.models.backbones import Backbone

SAMPLE_IMAGES = 32
"""Images that a dry run really embeds, to estimate the time of the others."""

NOTES_SHOWN = 10


@dataclass
class _Totals:
    """What a run has done so far."""

    images: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    notes_shown: int = 0

    @property
    def failed(self) -> int:
        return self.failures.total()

    def add(self, piece: "WrittenPiece") -> None:
        self.images += sum(part.rows for part in piece.parts)
        self.failures.update(piece.failures)
        self.seconds.update(piece.seconds)
        for note in piece.notes[: max(0, NOTES_SHOWN - self.notes_shown)]:
            say(f"failed: {note}")
            self.notes_shown += 1


def extract(config: ExtractConfig) -> dict[str, Any]:
    """Bring the table to where its source is.

    Args:
        config: of the command.

    Returns:
        The command's JSON object.

    Raises:
        ConfigError: the input is wrong; nothing was started.
        TooManyFailuresError: more images failed than allowed; all that was done is committed.
        TlrayError: the run could not go on; what was committed stays, and the same command goes on from there.
    """
    began = time.monotonic()
    table_uri = to_uri(config.table)
    source = open_source(config.source)
    table = Table.open_or_none(table_uri)
    # torch takes seconds to import: after the cheap checks.
    from tlray.models.backbones import resolve_backbone
    from tlray.models.encoder import make_recipe_file

    backbone = resolve_backbone(config.recipe, local_copy)
    check_preprocessing(backbone.recipe.preprocessing)
    if table is not None:
        check_recipe(table.recipe_file, backbone.recipe, table_uri)
    spec = FetchSpec(
        kind=source.kind,
        source=config.source,
        preprocessing=backbone.recipe.preprocessing,
        trust_listing=source.format == "manifest",
    )
    listing_began = time.monotonic()
    difference = compare(source, table, retry_codes=config.retry_failed)
    list_seconds = time.monotonic() - listing_began
    say(", ".join(f"{count} {name}" for name, count in difference.counts.items()))
    result: dict[str, Any] = {"table": table_uri, "recipe_id": backbone.recipe.recipe_id, **difference.counts}
    if config.dry_run:
        return result | {"dry_run": True, **_estimate(difference, spec, backbone)}
    if table is None:
        table = Table.create(table_uri, make_recipe_file(backbone))
    totals = _Totals()
    if difference.is_empty:
        say("nothing to do: the table is where its source is")
    else:
        with _workers(config) as workers:
            plan = difference.cut(unit_images=spec.piece_images, slots=workers.slots if workers else os.cpu_count() or 1)
            say(f"{plan.todo} to embed in {len(plan.units)} units, {plan.todo_bytes / 1e6:.1f} MB")
            _run(config, plan, spec, table, backbone, workers, totals)
        _compact(table)
    seconds = time.monotonic() - began
    return result | {
        "version": table.version,
        "ok": totals.images - totals.failed,
        "failed": totals.failed,
        "failures": dict(totals.failures),
        "seconds": round(seconds, 3),
        "images_per_second": round(totals.images / seconds, 3),
        "bottleneck": _bottleneck(totals, list_seconds),
    }


def _workers(config: ExtractConfig) -> AbstractContextManager["Workers | None"]:
    if config.local:
        return nullcontext()
    from tlray.extract.on_ray import cluster  # ray is slow to import, and --local does without it

    return cluster()


def _run(
    config: ExtractConfig,
    plan: Plan,
    spec: FetchSpec,
    table: Table,
    backbone: "Backbone",
    workers: "Workers | None",
    totals: _Totals,
) -> None:
    """Work the plan off and commit as it goes; whatever ends it, finished groups are committed first."""
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    committer = Committer(table, plan, run_id)
    total_is_known = plan.kind == "images"
    pieces = _pieces(plan, spec, table, backbone, workers, run_id) if plan.units else iter(())
    with Progress(plan.todo, total_is_known=total_is_known) as progress:
        try:
            for piece in pieces:
                if not committer.add(piece):
                    continue
                totals.add(piece)
                committer.flush()
                progress.update(sum(part.rows for part in piece.parts), sum(piece.failures.values()), table.version)
                if total_is_known:
                    _check_failures(config, totals, plan.todo)
        finally:
            committer.flush(now=True)
    if not total_is_known:
        _check_failures(config, totals, totals.images)


def _compact(table: Table) -> None:
    try:
        optimize(table, only_if_many=True)
    except ConcurrentWriteError as error:
        say(f"small parts stay as they are until the next run: {error}")


def _pieces(
    plan: Plan, spec: FetchSpec, table: Table, backbone: "Backbone", workers: "Workers | None", run_id: str
) -> Iterator["WrittenPiece"]:
    if workers is None:
        from tlray.extract.encoding import make_encoder
        from tlray.extract.local import run_locally

        encoder = make_encoder(table.recipe_file, where="this machine", backbone=backbone)
        return run_locally(plan, spec, encoder, table.uri, table.recipe_file, run_id)
    from tlray.extract.on_ray import run_on_ray

    return run_on_ray(plan, spec, table, workers, run_id)


def _check_failures(config: ExtractConfig, totals: _Totals, total: int) -> None:
    if totals.failed <= config.max_failed_fraction * total:
        return
    codes = ", ".join(f"{count} {code}" for code, count in totals.failures.most_common())
    raise TooManyFailuresError(
        f"{totals.failed} of {total} images failed ({codes}), more than max_failed_fraction={config.max_failed_fraction}; "
        f"their rows in {config.table} (status=failed) say why. Mend or exclude them, or give a larger --max-failed-fraction, "
        "and run the same command again: it goes on from here"
    )


def _estimate(difference: Difference, spec: FetchSpec, backbone: "Backbone") -> dict[str, Any]:
    """Embed a few images of the plan, in this process, and scale up; shards are estimated by their bytes."""
    from tlray.extract.sample import time_sample

    plan = difference.cut(unit_images=spec.piece_images, slots=os.cpu_count() or 1)
    if not plan.units:
        return {"units": 0, "todo_bytes": 0, "estimated_seconds": 0.0}
    seconds, fraction = time_sample(plan, spec, backbone, SAMPLE_IMAGES)
    estimate = round(seconds / fraction, 1)
    say(f"estimated {estimate:.0f} s in one process on this machine, from a sample that took {seconds:.1f} s")
    return {"units": len(plan.units), "todo_bytes": plan.todo_bytes, "estimated_seconds": estimate}


def _bottleneck(totals: _Totals, list_seconds: float) -> str:
    """The stage that was busy longest, summed over all workers."""
    busy = {"list": list_seconds, **totals.seconds}
    return max(busy, key=lambda stage: busy[stage])
