"""Extraction in one process, without Ray: the worker that does it, with a lane for every core."""

from collections.abc import Callable, Generator
from functools import partial

from tlray.config.commands.extraction import Engine
from tlray.extraction.plan.plan import Plan
from tlray.extraction.worker.pieces import Piece, WrittenParts
from tlray.extraction.worker.scoring_encoder import with_head
from tlray.extraction.worker.unit_worker import UnitWorker
from tlray.lake.source.read_spec import ReadSpec
from tlray.lake.storage.local_copy import local_copy
from tlray.lake.table.table import Table
from tlray.machine.capacity import usable_cores
from tlray.models.backbones.any_backbone import AnyBackbone
from tlray.models.encoder.golden import make_encoder


def engine_in_process(
    spec: ReadSpec,
    table: Table,
    backbone: AnyBackbone,
    run_id: str,
    closes: float | None = None,
    *,
    computed_by: Engine = "torch",
    images: int = 0,
) -> Callable[[Plan], Generator[Piece[WrittenParts], None, None]]:
    """Load the encoder of a table, once for all plans of a run.

    Args:
        spec: how items become pixels.
        table: that parts are written to.
        backbone: of the table.
        run_id: of the run.
        closes: seconds since 1970, from when on no unit is begun; None for no such time.
        computed_by: the config's `engine`.
        images: of the first plan, about.

    Returns:
        What works a plan off, see `UnitWorker.work_off`.

    Raises:
        GoldenMismatchError: this machine computes other numbers than the table holds.
    """
    lanes = usable_cores()
    file, where = table.recipe_file, "this machine"
    encoder = make_encoder(file, local_copy, where=where, backbone=backbone, lanes=lanes, engine=computed_by, images=images)
    scoring = with_head(encoder, table.recipe_file, table.uri)
    worker = UnitWorker(scoring, encoder, spec, table.uri, table.recipe_file, run_id, closes)
    return partial(worker.work_off, lanes=lanes)
