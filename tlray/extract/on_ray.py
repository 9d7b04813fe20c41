"""Extraction on a Ray cluster: Ray Data streams units through decode tasks, encoder actors and write tasks."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from tlray.errors import ConfigError, StorageError, TlrayError
from tlray.extract.pieces import WrittenPiece
from tlray.extract.ray_encoder import EncoderActor
from tlray.extract.ray_tasks import decode, unit_rows, write
from tlray.lake.fetch import FetchSpec
from tlray.lake.plan import Plan
from tlray.lake.table import Table

CPUS_PER_ENCODER = 4
"""Cores of one encoder actor on CPU nodes: convolutions of these sizes stop scaling beyond a few cores."""

FREE_CPUS = 2
"""Cores that no actor may claim: tasks that feed actors starve otherwise, and small clusters hang (ray issue 44687)."""

WRITE_CPUS = 0.25
"""A write task mostly waits for the store."""


@dataclass(frozen=True)
class Workers:
    """How a cluster is shared out.

    Attributes:
        encoders: encoder actors.
        cpus: that each one claims.
        gpus: likewise.
        threads: of each encoder's tensor operations; None leaves torch's choice.
        slots: decode tasks that can run at once.
    """

    encoders: int
    cpus: float
    gpus: float
    threads: int | None
    slots: int


def share_out(cpus: float, gpus: float, nodes: int) -> Workers:
    """Choose workers from a cluster's resources.

    On GPUs, one encoder each. On CPUs, encoders get all cores but those left to tasks; on nodes too small for that, one
    encoder a node claims none, and the operating system shares the cores.

    Args:
        cpus: of the cluster.
        gpus: of the cluster.
        nodes: alive.
    """
    slots = max(1, int(cpus))
    if gpus >= 1:
        return Workers(int(gpus), 0, 1, None, slots)
    if cpus < CPUS_PER_ENCODER + FREE_CPUS:
        return Workers(max(1, nodes), 0, 0, max(1, int(cpus / max(1, nodes))), slots)
    return Workers(math.floor((cpus - FREE_CPUS) / CPUS_PER_ENCODER), CPUS_PER_ENCODER, 0, CPUS_PER_ENCODER, slots)


@contextmanager
def cluster() -> Iterator[Workers]:
    """Join the cluster that Ray's own settings name, or start one on this machine; leave it at the end.

    A caller that has joined one already stays in it.

    Raises:
        ConfigError: there is none at the address, or none could be started.
    """
    joins = not ray.is_initialized()
    if joins:
        try:
            ray.init(logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"cannot join or start a Ray cluster: {error}; check RAY_ADDRESS (and RAY_AUTH_TOKEN), or give --local"
            ) from error
    try:
        # Its plan and progress are the driver's to report; its warnings stay.
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        # They tell users to reserve memory for what a worker process holds anyway.
        context.issue_detectors_config.detectors = []
        context.enable_progress_bars = False
        # Ray 2.57 lowered it to 2, which leaves fast encoders waiting for blocks.
        context.downstream_capacity_backpressure_ratio = 10.0
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        alive = sum(bool(node["Alive"]) for node in nodes)
        yield share_out(resources.get("CPU", 1), resources.get("GPU", 0), alive)
    finally:
        if joins:
            ray.shutdown()


def run_on_ray(plan: Plan, spec: FetchSpec, table: Table, workers: Workers, run_id: str) -> Iterator[WrittenPiece]:
    """Work a plan off.

    Yields:
        Written pieces as they are finished, in no particular order.

    Raises:
        TlrayError: what a worker raised of our own errors, as itself.
        StorageError: workers failed in another way, for longer than Ray's retries.
    """
    rows = unit_rows(plan.units)
    recipe = table.recipe_file.recipe
    pieces = ray.data.from_arrow(rows).map_batches(
        partial(decode, spec_json=spec.model_dump_json()), batch_size=1, batch_format="pyarrow", num_cpus=1
    )
    encoded = pieces.map_batches(
        EncoderActor,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(workers.encoders, len(rows))),
        # Given even where it is 0: with other resources than the decode tasks', Ray Data does not fuse the two into one actor.
        num_cpus=workers.cpus,
        num_gpus=workers.gpus or None,
        fn_constructor_args=(table.uri, workers.threads),
    )
    written = encoded.map_batches(
        partial(write, table_uri=table.uri, recipe_id=recipe.recipe_id, run_id=run_id),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=WRITE_CPUS,
    )
    try:
        for batch in written.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            assert isinstance(batch, pa.Table)
            for document in batch["written"].to_pylist():
                yield WrittenPiece.model_validate_json(document)
    except ray.exceptions.RayError as error:
        raise _our_own(error) from error


def _our_own(error: BaseException) -> TlrayError:
    """The error of ours that a Ray error wraps, or a StorageError that carries its text."""
    seen: BaseException | None = error
    while seen is not None:
        # The cause first: Ray's own wrapper counts as an instance of what it wraps, and carries the whole remote traceback.
        for candidate in (getattr(seen, "cause", None), seen):
            if isinstance(candidate, TlrayError):
                return candidate
        seen = seen.__cause__ or seen.__context__
    last_line = str(error).strip().splitlines()[-1]
    return StorageError(f"the workers failed: {last_line}; run the same command again, it goes on from the last commit")
