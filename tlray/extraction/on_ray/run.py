"""Plans worked off on a Ray cluster, through which Ray Data streams units.

Without GPUs, actors take a unit from its listing to its parts; with GPUs, tasks decode, actors embed, and tasks write.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.exceptions import ExecutionTimeoutError

from tlray.config.commands.extraction import Engine
from tlray.errors import GO_ON, StorageError
from tlray.extraction.on_ray.cluster import Cluster, Workers
from tlray.extraction.on_ray.encoder_actor import EncoderActor
from tlray.extraction.on_ray.left import Left
from tlray.extraction.on_ray.needs import Needs
from tlray.extraction.on_ray.tasks import decode, pieces_of, unit_rows, write
from tlray.extraction.on_ray.unit_actor import UnitActor
from tlray.extraction.plan.plan import Plan
from tlray.extraction.worker.pieces import Piece, WrittenParts
from tlray.extraction.worker.unit_worker import THREADS_AHEAD
from tlray.lake.source.read_spec import ReadSpec
from tlray.lake.table.table import Table
from tlray.machine.timers import late_timers
from tlray.progress import readable_seconds
from tlray.ray_cluster.errors import unwrapped
from tlray.ray_cluster.waiting import said_while_waiting

WRITE_CPUS = 0.25
"""A write task mostly waits for the store."""

LATE_SECONDS = 0.1
"""By which a driver may be late to see that a whole unit, a work of seconds, has ended: Ray Data has a thread that looks for
results a hundred times a second. A driver of stages may not, as their workers have nothing to do until it has seen it."""


def engine_on_ray(
    spec: ReadSpec,
    table: Table,
    weights: str,
    run_id: str,
    cluster: Cluster,
    closes: float | None = None,
    *,
    computed_by: Engine = "torch",
) -> Callable[[Plan], Generator[Piece[WrittenParts], None, None]]:
    """What works off the plans of a run.

    Args:
        spec: how items become pixels.
        table: that parts are written to.
        weights: where this run has the network's weights, wherever they were when the table was made.
        run_id: of the run.
        cluster: that was joined.
        closes: seconds since 1970, from when on no unit is begun, by the clocks of the workers; None for no such time.
        computed_by: the config's `engine`.
    """
    table_id, needs = table.recipe_file.table_id, cluster.needs
    orders = _Orders(spec.model_dump_json(), table.uri, weights, table_id, run_id, closes, computed_by, needs)
    return lambda plan: run_on_ray(plan, orders, cluster)


def run_on_ray(plan: Plan, orders: "_Orders", cluster: Cluster) -> Generator[Piece[WrittenParts], None, None]:
    """Work on all units of a plan.

    Yields:
        Written pieces as they are finished, in no particular order. Closed early, the workers are ended.

    Raises:
        TlrayError: what a worker raised of our own errors, as itself.
        ConfigError: a node that has joined runs other code.
        StorageError: workers failed in another way, for longer than Ray's retries, or made no progress for too long.
    """
    left = Left(plan.units)
    try:
        with unwrapped(), closing(said_while_waiting(_batches(plan, orders, cluster), left=left)) as arriving:
            for batch in arriving:
                assert isinstance(batch, pa.Table)
                for piece in pieces_of(batch):
                    left.take(piece)
                    yield piece
    except ExecutionTimeoutError as error:  # which is none of Ray's own errors
        seconds = ray.data.DataContext.get_current().execution_no_progress_timeout_s
        raise StorageError(
            f"nothing came from the workers for {readable_seconds(seconds)}: {left}. Look at the cluster; where workers die "
            f"again and again, an image may need more memory than they have (source.max_image_pixels limits it); {GO_ON}"
        ) from error
    except StorageError:
        cluster.require_same_code()  # on a node with other code anything may fail, and say anything
        raise


def _batches(plan: Plan, orders: "_Orders", cluster: Cluster) -> Iterator[Any]:
    """What workers write, as Ray Data's batches."""
    cluster.wait_for_cores(plan)
    workers = cluster.workers_for(plan)
    units = ray.data.from_blocks(unit_rows(plan.units))  # `from_arrow` would start a task for each
    work = _in_stages if workers.gpus else _in_whole_units
    written = work(units, workers, orders, images_each=plan.about_images // workers.actors)
    with nullcontext() if workers.gpus else late_timers(LATE_SECONDS):
        yield from written.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


@dataclass(frozen=True)
class _Orders:
    """What the workers of a run are told."""

    spec_json: str
    table_uri: str
    weights: str
    recipe_id: str
    run_id: str
    closes: float | None = None
    computed_by: Engine = "torch"
    needs: Needs | None = None


def _pool(actors: int, **more: Any) -> ray.data.ActorPoolStrategy:
    """A pool of so many actors: those that find room start at once, the others when a node joins or other work has ended.

    All are created at once, as those without room are what an autoscaler sees. Ray Data itself creates none for which the
    cluster has no room yet (ray-project/ray 59144).
    """
    return ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors, **more)


def _in_whole_units(units: ray.data.Dataset, workers: Workers, orders: _Orders, *, images_each: int) -> ray.data.Dataset:
    """On CPUs: each actor takes units from listing to parts."""
    assert workers.lanes is not None
    calls = workers.lanes + THREADS_AHEAD + 1  # as the next unit comes only when the driver has heard of the last one's end
    return units.map_batches(
        UnitActor,
        batch_size=1,
        batch_format="pyarrow",
        compute=_pool(
            workers.actors,
            max_concurrent_calls_per_actor=calls,
            max_tasks_in_flight_per_actor=calls + 1,
            enable_true_multi_threading=True,
        ),
        num_cpus=workers.cpus,
        # Only where it must be: Ray starts a process of its own for it, in seconds, beside those that it has waiting.
        runtime_env={"env_vars": dict(workers.env)} if workers.env else None,
        fn_constructor_args=(
            *(orders.table_uri, orders.weights, orders.spec_json, orders.run_id),
            *(workers.lanes, orders.closes, orders.computed_by, images_each, orders.needs),
        ),
    )


def _in_stages(units: ray.data.Dataset, workers: Workers, orders: _Orders, *, images_each: int) -> ray.data.Dataset:
    """With GPUs: tasks on all nodes decode and write, the GPUs' actors do nothing but encode."""
    decoding = partial(decode, spec_json=orders.spec_json, closes=orders.closes, needs=orders.needs)
    pieces = units.map_batches(decoding, batch_size=1, batch_format="pyarrow", num_cpus=1)
    encoded = pieces.map_batches(
        EncoderActor,
        batch_size=1,
        batch_format="pyarrow",
        compute=_pool(workers.actors),
        # Given even where it is 0: with other resources than the decode tasks', Ray Data does not fuse the two into one actor.
        num_cpus=workers.cpus,
        num_gpus=workers.gpus or None,
        fn_constructor_args=(orders.table_uri, orders.weights, images_each, orders.needs),
    )
    return encoded.map_batches(
        partial(write, table_uri=orders.table_uri, recipe_id=orders.recipe_id, run_id=orders.run_id, needs=orders.needs),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=WRITE_CPUS,
    )
