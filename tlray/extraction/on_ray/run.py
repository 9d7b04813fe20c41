"""Plans worked off on a Ray cluster, through which Ray Data streams units.

Without GPUs, actors take a unit from its listing to its parts; with GPUs, tasks decode, actors embed, and tasks write.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError

from tlray.config.commands.extraction import Engine
from tlray.errors import GO_ON, StorageError, first_line
from tlray.extraction.on_ray.encoder_actor import EncoderActor
from tlray.extraction.on_ray.tasks import decode, pieces_of, unit_rows, write
from tlray.extraction.on_ray.unit_actor import UnitActor
from tlray.extraction.plan.plan import Plan
from tlray.extraction.worker.pieces import Piece, WrittenParts
from tlray.extraction.worker.unit_worker import LANES_PER_PROCESS, THREADS_AHEAD
from tlray.lake.source.read_spec import ReadSpec
from tlray.lake.table.table import Table
from tlray.models.encoder.memory import as_environment
from tlray.progress import say
from tlray.ray_cluster.errors import unwrapped
from tlray.ray_cluster.session import address, joined, quiet_data
from tlray.ray_cluster.waiting import said_while_waiting

NODES_SHOWN = 8

WRITE_CPUS = 0.25
"""A write task mostly waits for the store."""


@dataclass(frozen=True)
class Workers:
    """The workers that a cluster has room for.

    Attributes:
        actors: how many actors embed.
        cpus: that each actor claims.
        gpus: that each actor claims; where 0, it decodes and writes as well.
        lanes: of each actor's encoder, one a core; None on a GPU.
        slots: units that can be worked on at once.
        nodes: Ray's ids of the nodes that work.
        is_own: whether the cluster was started for this run, on this machine.
        env: environment variables that actors are yet to be given.
    """

    actors: int
    cpus: float
    gpus: float
    lanes: int | None
    slots: int
    nodes: tuple[str, ...] = ()
    is_own: bool = False
    env: Mapping[str, str] = field(default_factory=dict)


def share_out(node_cpus: Sequence[float], gpus: float) -> Workers:
    """Share out a cluster's processors and GPUs among workers.

    With GPUs, one encoder actor each, and decode and write tasks on the CPUs of all nodes. Without, actors that claim all
    cores of every node (at most LANES_PER_PROCESS each) and need no tasks beside them.

    Args:
        node_cpus: of each node that is alive; nodes that offer none (a head that must not work) do not count.
        gpus: of the cluster.
    """
    working = [cpus for cpus in node_cpus if cpus >= 1] or [1.0]
    slots = int(sum(working))
    if gpus >= 1:
        return Workers(int(gpus), 0, 1, None, slots)
    lanes = min(LANES_PER_PROCESS, int(min(working)))
    return Workers(sum(int(cpus / lanes) for cpus in working), lanes, 0, lanes, slots)


@contextmanager
def cluster() -> Iterator[Workers]:
    """Join a cluster (see `joined`), set Ray Data up for a run, and share the cluster out among workers."""
    # Ray's own threads are in an actor before it could say so itself.
    with joined(as_environment()) as is_own, quiet_data(), _own_context() as context:
        # They tell users to reserve memory for what a worker process holds anyway.
        context.issue_detectors_config.detectors = []
        context.enable_progress_bars = False
        # Ray 2.57 lowered it to 2, which leaves fast encoders waiting for blocks.
        context.downstream_capacity_backpressure_ratio = 10.0
        nodes: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        cpus, gpus = ([node["Resources"].get(kind, 0) for node in nodes] for kind in ("CPU", "GPU"))
        working = tuple(node["NodeID"] for node, cores in zip(nodes, cpus, strict=True) if cores >= 1)
        nodes_used = working or tuple(node["NodeID"] for node in nodes)
        workers = replace(share_out(cpus, sum(gpus)), nodes=nodes_used, is_own=is_own)
        say(
            f"{'a Ray cluster of its own' if is_own else f'the Ray cluster at {address()}'}: {_described(nodes, cpus, workers)}"
        )
        yield workers if is_own else replace(workers, env=as_environment())


def _described(nodes: Sequence[dict[str, Any]], cpus: Sequence[float], workers: Workers) -> str:
    """What a cluster has, and what of it a run takes."""
    hosts = ", ".join(str(node["NodeManagerAddress"]) for node in nodes[:NODES_SHOWN])
    if workers.gpus:
        taken = f"{workers.actors} encoders with a GPU each, and decoding on {workers.slots} cores"
    else:
        taken = f"up to {workers.actors} worker{'s' * (workers.actors > 1)} of {workers.cpus:g} cores"
    more = ", ..." if len(nodes) > NODES_SHOWN else ""
    return f"{len(nodes)} node{'s' * (len(nodes) > 1)} ({hosts}{more}) with {sum(cpus):g} cores; it takes {taken}"


@contextmanager
def _own_context() -> Iterator[ray.data.DataContext]:
    """Ray Data's settings, which a program that uses the library may have set for itself, to be changed for a while."""
    context = ray.data.DataContext.get_current().copy()
    with ray.data.DataContext.current(context):
        yield context


def engine_on_ray(
    spec: ReadSpec,
    table: Table,
    weights: str,
    run_id: str,
    workers: Workers,
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
        workers: of the cluster.
        closes: seconds since 1970, from when on no unit is begun, by the clocks of the workers; None for no such time.
        computed_by: the config's `engine`.
    """
    orders = _Orders(
        spec.model_dump_json(), table.uri, weights, table.recipe_file.table_id, run_id, closes, computed_by=computed_by
    )
    return lambda plan: run_on_ray(plan, orders, workers)


def run_on_ray(plan: Plan, orders: "_Orders", workers: Workers) -> Generator[Piece[WrittenParts], None, None]:
    """Work on all units of a plan.

    Yields:
        Written pieces as they are finished, in no particular order. Closed early, the workers are ended.

    Raises:
        TlrayError: what a worker raised of our own errors, as itself.
        StorageError: workers failed in another way, for longer than Ray's retries, or made no progress for too long.
    """
    units = ray.data.from_blocks(unit_rows(plan.units))  # `from_arrow` would start a task for each
    workers = for_plan(workers, plan)
    work = _in_stages if workers.gpus else _in_whole_units
    written = work(units, workers, orders, images_each=plan.about_images // workers.actors)
    try:
        batches = written.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        with unwrapped(), closing(said_while_waiting(batches)) as arriving:
            for batch in arriving:
                assert isinstance(batch, pa.Table)
                yield from pieces_of(batch)
    except ExecutionTimeoutError as error:  # which is none of Ray's own errors
        raise StorageError(f"the workers made no progress: {first_line(error)}; look at the cluster, then {GO_ON}") from error


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


def for_plan(workers: Workers, plan: Plan) -> Workers:
    """The same workers with no more actors than a plan has units."""
    return replace(workers, actors=min(workers.actors, len(plan.units)))


def _in_whole_units(units: ray.data.Dataset, workers: Workers, orders: _Orders, *, images_each: int) -> ray.data.Dataset:
    """On CPUs: each actor takes units from listing to parts."""
    assert workers.lanes is not None
    calls = workers.lanes + THREADS_AHEAD + 1  # as the next unit comes only when the driver has heard of the last one's end
    return units.map_batches(
        UnitActor,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            # Those that find room start at once; the others when somebody else's work has ended.
            min_size=1,
            max_size=workers.actors,
            initial_size=workers.actors,
            max_concurrent_calls_per_actor=calls,
            max_tasks_in_flight_per_actor=calls + 1,
            enable_true_multi_threading=True,
        ),
        num_cpus=workers.cpus,
        # Only where it must be: Ray starts a process of its own for it, in seconds, beside those that it has waiting.
        runtime_env={"env_vars": dict(workers.env)} if workers.env else None,
        fn_constructor_args=(
            *(orders.table_uri, orders.weights, orders.spec_json, orders.run_id),
            *(workers.lanes, orders.closes, orders.computed_by, images_each),
        ),
    )


def _in_stages(units: ray.data.Dataset, workers: Workers, orders: _Orders, *, images_each: int) -> ray.data.Dataset:
    """With GPUs: tasks on all nodes decode and write, the GPUs' actors do nothing but encode."""
    decoding = partial(decode, spec_json=orders.spec_json, closes=orders.closes)
    pieces = units.map_batches(decoding, batch_size=1, batch_format="pyarrow", num_cpus=1)
    encoded = pieces.map_batches(
        EncoderActor,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers.actors),
        # Given even where it is 0: with other resources than the decode tasks', Ray Data does not fuse the two into one actor.
        num_cpus=workers.cpus,
        num_gpus=workers.gpus or None,
        fn_constructor_args=(orders.table_uri, orders.weights, images_each),
    )
    return encoded.map_batches(
        partial(write, table_uri=orders.table_uri, recipe_id=orders.recipe_id, run_id=orders.run_id),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=WRITE_CPUS,
    )
