"""`tlray extract`: from its config to its result."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tlray.config import ExtractConfig, RunConfig
from tlray.extraction.run.deadline import Deadline, closes_at
from tlray.extraction.run.inputs import Inputs, require_text
from tlray.extraction.run.metrics import metrics_of, served_if_asked
from tlray.extraction.run.process import own_process
from tlray.extraction.run.result import left_out_of
from tlray.extraction.run.run import Run, backlogs_of, named_run
from tlray.extraction.run.stop import Stop
from tlray.extraction.run.totals import Totals
from tlray.extraction.run.workplace import Workplace
from tlray.lake.storage.local_copy import local_copy
from tlray.lake.storage.uri import to_uri
from tlray.version import __version__

if TYPE_CHECKING:
    from tlray.extraction.target import Target


def extract_command(config: ExtractConfig) -> dict[str, Any]:
    """`extract` in a process of its own: SIGTERM ends it in good order."""
    with own_process() as stop:
        return extract(config, stop)


def extract(config: ExtractConfig, stop: Stop | None = None) -> dict[str, Any]:
    """Bring the table to where its source is.

    Args:
        config: of the command.
        stop: asks the run to end.

    Returns:
        The command's JSON object.

    Raises:
        ConfigError: the input is wrong; nothing was started.
        TooManyFailuresError: more images failed than allowed; all that was done is committed.
        StoppedError: `stop` asked for it, or its time is over; likewise.
        TlrayError: the run could not go on; what was committed stays, and the same command goes on from there.
    """
    require_text(config.recipe.backbone, config.source)

    def make_target() -> "Target":
        from tlray.extraction.target import Target  # imports torch
        from tlray.models.backbones.any_backbone import resolve_any_backbone
        from tlray.models.backbones.images import Backbone
        from tlray.models.encoder.network.network import FoldedOnce

        backbone = resolve_any_backbone(config.recipe, local_copy)
        # Folded once for a new table's golden vectors and, in one process, for its encoder.
        return Target(FoldedOnce.of(backbone) if isinstance(backbone, Backbone) else backbone)

    return bring_up_to_date(config, config.table, make_target, stop)


def bring_up_to_date(
    config: RunConfig, table: str, make_target: Callable[[], "Target"], stop: Stop | None = None
) -> dict[str, Any]:
    """Bring any table to where its source is; returns and raises as `extract` does.

    Args:
        config: of the run.
        table: URI or path.
        make_target: makes the network that is run over the images; called after the cheap checks, as torch takes seconds to
            import.
        stop: see `extract`.
    """
    totals, dry, closes = Totals(), "a dry run of " if config.dry_run else "", closes_at(config.by, config.budget_hours)
    with (
        named_run(f"{dry}{config.source.uri} into {table}, by tlray {__version__}") as run_id,
        Workplace(config.local, stop or Stop(), gpus=config.gpus, most=config.max_workers) as workplace,
    ):
        inputs = Inputs.open(config.source, to_uri(table), make_target, workplace, is_dry_run=config.dry_run)
        if inputs.target.backbone.recipe.precision.compute == "int8":
            from tlray.models.encoder.int8.encoder import check_place  # imports torch

            check_place(inputs.target.backbone.recipe, engine=config.engine)
            workplace.stay_on_cores()
        if config.dry_run:
            from tlray.extraction.plan.estimate import estimate_seconds  # imports torch

            backlogs = backlogs_of(inputs.source, inputs.table, config, totals)
            estimate = estimate_seconds(backlogs, inputs.read_spec, inputs.target.backbone, lambda: totals.start_seconds)
            return {**inputs.ids, **totals.counts, **left_out_of(inputs.source, totals), "dry_run": True, **estimate}
        workplace.check_workers(inputs.source, inputs.table_uri)
        deadline = None if closes is None else Deadline(closes)
        read = partial(metrics_of, totals)
        workplace.tell_of(run_id, read)
        with (
            served_if_asked(config.metrics_host, config.metrics_port, run_id, read),
            Run.open(inputs, config, workplace, totals, run_id, deadline) as run,
        ):
            run.work_off()
            return run.result()
