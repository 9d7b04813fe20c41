"""Where a run works: in this process or on a Ray cluster, which is joined when it is first needed."""

import sys
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TypeVar

from tlray.config.commands.extraction import Engine as ComputedBy
from tlray.errors import ConfigError
from tlray.extraction.plan.plan import Plan
from tlray.extraction.run.report import Resources
from tlray.extraction.run.stop import Stop
from tlray.extraction.worker.unit_worker import LANES_PER_PROCESS
from tlray.lake.source.read_spec import ReadSpec
from tlray.lake.source.source import Source
from tlray.lake.storage.uri import to_path
from tlray.lake.table.table import Table
from tlray.machine.capacity import usable_cores
from tlray.progress import say
from tlray.ray_cluster.address import is_there, named, starts_own

if TYPE_CHECKING:
    from tlray.extraction.on_ray.cluster import Cluster
    from tlray.extraction.worker.pieces import Piece, WrittenParts
    from tlray.lake.table.rewrite import Submit
    from tlray.metrics import Metric
    from tlray.models.backbones.any_backbone import AnyBackbone

Engine = Callable[[Plan], Generator["Piece[WrittenParts]", None, None]]
"""Works a plan off: yields written pieces in no particular order; closed early, its work ends."""

Made = TypeVar("Made")


class Workplace:
    """Where units are worked on. A context manager: a cluster that was joined is left at the end.

    Args:
        local: of the config: one process, no Ray; None chooses by what is there.
        stop: listens again after Ray has set a handler of its own.
        gpus: of the config: whether a cluster's workers embed on GPUs.
        most: of the config: workers of a cluster.
    """

    def __init__(self, local: bool | None, stop: Stop, *, gpus: bool | None = None, most: int | None = None) -> None:
        self.stop = stop
        self._local = local
        self._gpus, self._most = gpus, most
        self._stack = ExitStack()
        self._told: tuple[str, Callable[[], list[Metric]]] | None = None

    def __enter__(self) -> Self:
        if (self._gpus is not None or self._most is not None) and not self._joins:
            raise ConfigError(
                "gpus and max_workers are about workers of a Ray cluster that is there already, and this run joins none; "
                "expected one (RAY_ADDRESS, `ray start` on this machine, `ray job submit`), or neither of the two"
            )
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def _joins(self) -> bool:
        """Whether the work is done on a cluster that was there before this run."""
        return not self._local and (has_joined() or not starts_own())

    def stay_on_cores(self) -> None:
        """Embed on cores, also where a cluster has GPUs, as they cannot compute the recipe.

        Raises:
            ConfigError: GPUs were asked for.
        """
        if self._gpus:
            raise ConfigError("gpus is true, but recipe.precision.compute int8 is computed on CPUs; leave it out, or use bf16")
        self._gpus = False
        if (joined := self.__dict__.get("_cluster")) is not None:
            joined.stay_on_cores()

    @property
    def is_here(self) -> bool:
        """Whether units are worked on in this process."""
        return self._cluster is None

    @property
    def slots(self) -> int:
        """Units that can be worked on at once."""
        return self._cluster.workers.slots if self._cluster else usable_cores()

    @property
    def resources(self) -> Resources:
        """Processors and GPUs of the workers, as many as there were on average so far."""
        if self._cluster is None:
            return Resources(usable_cores(), 0)
        return Resources(*self._cluster.mean_capacity())

    def while_it_starts(self, make: Callable[[], Made]) -> Made:
        """Make something, torch imported, while a cluster of this run's own starts, if that is sure to be needed."""
        if not starts_cluster(self._local):
            return make()
        import tlray.extraction.on_ray.run  # noqa: F401  # before torch, whose import in a thread would slow it down

        with ThreadPoolExecutor(1) as threads:
            making = threads.submit(make)
            _ = self._cluster
            return making.result()

    def engine(
        self,
        spec: ReadSpec,
        table: Table,
        backbone: "AnyBackbone",
        run_id: str,
        closes: float | None = None,
        *,
        computed_by: ComputedBy = "torch",
        images: int = 0,
    ) -> Engine:
        """What works off plans, one after the other; in this process the encoder is loaded now, once for all of them.

        Args:
            spec: how items become pixels.
            table: that parts are written to.
            backbone: of the run.
            run_id: of the run.
            closes: seconds since 1970, from when on no unit is begun; None for no such time.
            computed_by: the config's `engine`.
            images: of the first plan, about.
        """
        if self._cluster is None:
            from tlray.extraction.in_process import engine_in_process

            return engine_in_process(spec, table, backbone, run_id, closes, computed_by=computed_by, images=images)
        from tlray.extraction.on_ray.run import engine_on_ray

        weights = backbone.recipe.weights
        return engine_on_ray(spec, table, weights, run_id, self._cluster, closes, computed_by=computed_by)

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> "Future[Any]":
        """Have a part written again beside the other work, on a cluster by one of its nodes (`Submit`)."""
        return self._aside(function, *arguments, **options)

    def tell_of(self, run_id: str, read: "Callable[[], list[Metric]]") -> None:
        """Have Ray know the metrics of a run, from when there is a cluster on."""
        self._told = run_id, read
        if self.__dict__.get("_cluster") is not None:
            self._tell()

    def _tell(self) -> None:
        if self._told is not None:
            from tlray.extraction.on_ray.metrics import told_to_ray

            self._stack.enter_context(told_to_ray(*self._told))

    def check_workers(self, source: Source, table_uri: str) -> None:
        """Make sure that workers on other machines can do the work, before anything is written.

        A cluster that is there already is joined now, though there may turn out to be nothing to do.

        Raises:
            ConfigError: they run other code than this process.
            SourceError: they do not see what is local here.
        """
        if not self._joins or self._cluster is None or self._cluster.is_own:
            return
        source_is_local, table_is_local = (uri.startswith("file://") for uri in (source.uri, table_uri))
        if not (source_is_local or table_is_local):
            return
        from tlray.extraction.on_ray.reach import check_reach

        first = next(source.pages(), None) if source_is_local else None
        listed = None if first is None else str(first["uri"][0])
        source_uri = listed if listed and listed.startswith("file://") else None
        check_reach(self._cluster.nodes.ids, source_uri=source_uri, table_uri=table_uri if table_is_local else None)
        sees = ([to_path(source_uri).parent] if source_uri else []) + ([to_path(table_uri)] if table_is_local else [])
        self._cluster.sees = tuple(map(str, sees))  # the table is there when the first worker looks

    @cached_property
    def _aside(self) -> "Submit":
        if self._cluster is None:
            # One thread, as all cores are at work already, and it writes faster than they make.
            thread = ThreadPoolExecutor(1, thread_name_prefix="join")
            self._stack.callback(thread.shutdown, cancel_futures=True)
            return thread.submit
        from tlray.extraction.on_ray.aside import submit_to

        return submit_to(self._cluster)

    @cached_property
    def _cluster(self) -> "Cluster | None":
        """The cluster, which is joined at the first use; None where this process does the work."""
        if works_here(self._local):
            return None
        from tlray.extraction.on_ray.cluster import cluster  # ray is slow to import, and one process does without it

        joined = self._stack.enter_context(cluster(self._gpus, self._most))
        self.stop.listen()
        self._tell()
        return joined


def starts_cluster(local: bool | None) -> bool:
    """Whether a run is sure to start a cluster of its own, as far as can be told before torch is imported."""
    return named() == "local" if local is None else not local and starts_own()


def works_here(local: bool | None) -> bool:
    """Whether a run does all its work in this process, without Ray.

    Where nobody says, and there is no cluster to join, one process does as well as long as it can use the whole machine: it
    starts earlier, and Ray's own processes take a part of the cores.

    Args:
        local: of the config.
    """
    if local is not None:
        return local
    cores = usable_cores()
    if has_joined() or is_there() or cores > LANES_PER_PROCESS:
        return False
    import torch  # takes seconds

    if torch.cuda.is_available():
        return False
    say(f"in this process, as there is no Ray cluster and {cores} cores need none; --no-local starts one")
    return True


def has_joined() -> bool:
    """Whether this process is part of a cluster already."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())
