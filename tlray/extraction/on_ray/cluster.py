"""A cluster that a run has joined, and how its nodes are shared out among workers, those of the moment and those to come."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace

import ray
import ray.data
import ray.exceptions

from tlray.extraction.on_ray.needs import Needs
from tlray.extraction.on_ray.nodes import Nodes
from tlray.extraction.plan.plan import Plan
from tlray.extraction.worker.unit_worker import LANES_PER_PROCESS
from tlray.models.encoder.memory import as_environment
from tlray.progress import say
from tlray.ray_cluster.code import code_here
from tlray.ray_cluster.same_code import check_nodes
from tlray.ray_cluster.session import address, joined, quiet_data

CORE_IMAGES, GPU_IMAGES = 4_096, 32_768
"""Images that are worth a core, and a GPU, that is yet to come: as it takes minutes to start one, so many of most networks."""

LEAST_CORE_IMAGES, LEAST_GPU_IMAGES = 128, 8_192
"""Images that are worth loading the network for, on a node that is there."""

WAIT_SECONDS = 1.0

HOLD_SECONDS = 0.1


@dataclass(frozen=True)
class Workers:
    """The workers that a cluster has room for.

    Attributes:
        actors: how many actors embed; more than there is room for wait until nodes join.
        cpus: that each actor claims.
        gpus: that each actor claims; where 0, it decodes and writes as well.
        lanes: of each actor's encoder, one a core; None on a GPU.
        slots: units that can be worked on at once.
        env: environment variables that actors are yet to be given.
    """

    actors: int
    cpus: float
    gpus: float
    lanes: int | None
    slots: int
    env: Mapping[str, str] = field(default_factory=dict)


def share_out(node_cpus: Sequence[float], gpus: float, *, on_gpus: bool | None = None) -> Workers:
    """Share out a cluster's processors and GPUs among workers.

    With GPUs, one encoder actor each, and decode and write tasks on the CPUs of all nodes. Without, actors that claim all
    cores of every node (at most LANES_PER_PROCESS each) and need no tasks beside them.

    Args:
        node_cpus: of each node that is alive; nodes that offer none (a head that must not work) do not count.
        gpus: of the cluster.
        on_gpus: whether to embed on GPUs, which may all be yet to come; None where there are any.
    """
    working = [cpus for cpus in node_cpus if cpus >= 1]
    slots = max(1, int(sum(working)))
    if gpus >= 1 if on_gpus is None else on_gpus:
        return Workers(int(gpus), 0, 1, None, slots)
    lanes = min(LANES_PER_PROCESS, int(min(working, default=1)))
    return Workers(sum(int(cpus / lanes) for cpus in working), lanes, 0, lanes, slots)


def useful(workers: Workers, images: int) -> int:
    """How many workers have enough to do with so many images, be there room for them yet or not; at least one.

    As many as would be at work for minutes. Where that is few, twice as many as there are, if these have enough to load the
    network for: so a node that joins anyway gets work.
    """
    each, least = (GPU_IMAGES, LEAST_GPU_IMAGES) if workers.lanes is None else (CORE_IMAGES, LEAST_CORE_IMAGES)
    lanes = workers.lanes or 1
    return max(1, images // (each * lanes), min(2 * workers.actors, images // (least * lanes)))


class Cluster:
    """A cluster that a run has joined.

    Args:
        nodes: of it.
        is_own: whether it was started for this run, on this machine; no node joins it then.
        on_gpus: of the config: whether to embed on GPUs, be they yet to come; None chooses by what is there.
        most: of the config: workers, at most.

    Attributes:
        sees: local files and folders of the driver, which all nodes see that were asked.
    """

    sees: tuple[str, ...] = ()

    def __init__(self, nodes: Nodes, is_own: bool, on_gpus: bool | None = None, most: int | None = None) -> None:
        self.nodes = nodes
        self.is_own = is_own
        self._on_gpus, self._most = on_gpus, most or float("inf")
        self._waiting = 0

    def stay_on_cores(self) -> None:
        """Leave its GPUs alone."""
        self._on_gpus = False

    @property
    def workers(self) -> Workers:
        """Those that the nodes of the moment have room for."""
        workers = share_out([node.cpus for node in self.nodes.alive], self.nodes.gpus, on_gpus=self._on_gpus)
        workers = replace(workers, actors=int(min(workers.actors, self._most)))
        return workers if self.is_own else replace(workers, env=as_environment())

    def workers_for(self, plan: Plan) -> Workers:
        """As many workers as have enough to do by a plan: those without room wait for it, which an autoscaler sees."""
        there = self.workers
        enough = 1 if self.is_own else useful(there, plan.about_images)
        actors = int(min(max(there.actors, enough), self._most, len(plan.units)))
        waiting = actors - there.actors
        if waiting > self._waiting:
            more = f"{waiting} worker{'s' * (waiting > 1)} more would have enough to do"
            say(f"{more}: they start as nodes join, which an autoscaler sees")
        self._waiting = max(waiting, self._waiting)
        return replace(there, actors=actors)

    def wait_for_cores(self, plan: Plan) -> None:
        """Where no node has a core yet, wait for the first, as workers are as large as the nodes allow.

        An autoscaler is asked meanwhile for as many cores as a plan keeps busy.
        """
        if self._on_gpus or self.nodes.working:
            return
        cores = int(min(max(1, plan.about_images // CORE_IMAGES), self._most, len(plan.units)))
        say(f"no node of the cluster can work yet: waiting for one; an autoscaler sees that {cores} cores are wanted")

        # Ray 2.60 ends the driver where a task is cancelled at the moment in which it returns, so these never do. They are not
        # of this module, which a worker would have to import first.
        @ray.remote(num_cpus=1)
        def hold() -> None:
            while True:  # one long sleep would not notice that it is cancelled
                time.sleep(HOLD_SECONDS)

        wanted = [hold.remote() for _ in range(cores)]
        try:
            while not self.nodes.working:
                time.sleep(WAIT_SECONDS)
                self.nodes.look()
        finally:
            with suppress(ray.exceptions.RayError):  # of a cluster that is gone
                for each in wanted:
                    ray.cancel(each)

    @property
    def needs(self) -> Needs | None:
        """What workers must have on nodes that join; None where no node does."""
        return None if self.is_own else Needs(code_here(), self.sees)

    def require_same_code(self) -> None:
        """Make sure that nodes which have joined since the beginning run what this process runs.

        Raises:
            ConfigError: some run something else.
        """
        with suppress(ray.exceptions.RayError):  # a head that is away is told of elsewhere
            self.nodes.look()
            if any(node.node_id not in self.nodes.first for node in self.nodes.working):
                check_nodes(self.nodes.first)

    def mean_capacity(self) -> tuple[float, float]:
        """Cores and GPUs that the run could use, as many as there were on average so far."""
        cpus, gpus = self.nodes.mean()
        workers = self.workers
        return (cpus, min(gpus, self._most)) if workers.gpus else (min(cpus, self._most * workers.cpus), 0)


@contextmanager
def cluster(on_gpus: bool | None = None, most: int | None = None) -> Iterator[Cluster]:
    """Join a cluster (see `joined`), set Ray Data up for a run, and look at who works there as long as it goes on."""
    # Ray's own threads are in an actor before it could say so itself.
    with joined(as_environment()) as is_own, quiet_data(), _own_context() as context:
        # They tell users to reserve memory for what a worker process holds anyway.
        context.issue_detectors_config.detectors = []
        context.enable_progress_bars = False
        # Ray 2.57 lowered it to 2, which leaves fast encoders waiting for blocks.
        context.downstream_capacity_backpressure_ratio = 10.0
        # A worker that waits for images keeps its network: to load it again takes longer than most waits.
        context.autoscaling_config.actor_pool_util_downscaling_threshold = -1.0
        nodes = Nodes()
        here = Cluster(nodes, is_own, on_gpus, most)
        which = "a Ray cluster of its own" if is_own else f"the Ray cluster at {address()}"
        say(f"{which}: {nodes}; it takes {_taken(here.workers)}")
        with nullcontext() if is_own else nodes.watched():
            yield here


def _taken(workers: Workers) -> str:
    """What a run takes of a cluster."""
    if not workers.actors:
        return "what joins"
    if workers.gpus:
        encoders = f"{workers.actors} encoder{'s' * (workers.actors > 1)} with a GPU each"
        return f"{encoders}, and decoding on {workers.slots} core{'s' * (workers.slots > 1)}"
    return f"up to {workers.actors} worker{'s' * (workers.actors > 1)} of {workers.cpus:g} cores"


@contextmanager
def _own_context() -> Iterator[ray.data.DataContext]:
    """Ray Data's settings, which a program that uses the library may have set for itself, to be changed for a while."""
    context = ray.data.DataContext.get_current().copy()
    with ray.data.DataContext.current(context):
        yield context
