"""The nodes of a cluster as they come and go while a run goes on: who is there, and how much there was on average."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import ray
import ray.exceptions

from tlray.machine.timers import repeated
from tlray.progress import say

LOOK_SECONDS = 5.0

NODES_SHOWN = 8


class Node(NamedTuple):
    """A node of a cluster.

    Attributes:
        node_id: Ray's.
        address: of its host.
        cpus: that it offers; a head that must not work has none.
        gpus: likewise.
    """

    node_id: str
    address: str
    cpus: float
    gpus: float


class Nodes:
    """The nodes that are alive, looked at now and then.

    Attributes:
        alive: all of them, as they were found last.
        first: Ray's ids of those that were there at the beginning.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = self._counted = time.monotonic()
        self._cpu_seconds = self._gpu_seconds = 0.0
        self.alive = _alive()
        self.first = frozenset(node.node_id for node in self.alive)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Look again every LOOK_SECONDS, and at the end, and say who joined and who left."""
        try:
            with repeated(self.look, LOOK_SECONDS, name="nodes"):
                yield
        finally:
            self.look()

    def look(self) -> None:
        """See who is there now."""
        with contextlib.suppress(ray.exceptions.RayError), self._lock:  # a head that is away is told of elsewhere
            now = _alive()
            self._count()
            before, self.alive = self.alive, now
            for line in changes(before, now):
                say(line)

    @property
    def working(self) -> list[Node]:
        """Those that have a core or a GPU to work with."""
        return [node for node in self.alive if node.cpus >= 1 or node.gpus >= 1]

    @property
    def ids(self) -> Sequence[str]:
        """Ray's ids of those that work; of all, where none does."""
        return [node.node_id for node in self.working or self.alive]

    @property
    def cpus(self) -> float:
        """Their cores."""
        return sum(node.cpus for node in self.working)

    @property
    def gpus(self) -> float:
        """Their GPUs."""
        return sum(node.gpus for node in self.working)

    def mean(self) -> tuple[float, float]:
        """Cores and GPUs, as many as there were on average since the beginning."""
        with self._lock:
            self._count()
            seconds = self._counted - self._began
            return (self._cpu_seconds / seconds, self._gpu_seconds / seconds) if seconds else (self.cpus, self.gpus)

    def _count(self) -> None:
        now = time.monotonic()
        self._cpu_seconds += (now - self._counted) * self.cpus
        self._gpu_seconds += (now - self._counted) * self.gpus
        self._counted = now

    def __str__(self) -> str:
        hosts = ", ".join(node.address for node in self.alive[:NODES_SHOWN])
        more = ", ..." if len(self.alive) > NODES_SHOWN else ""
        return f"{len(self.alive)} node{'s' * (len(self.alive) > 1)} ({hosts}{more}) with {self.cpus:g} cores"


def changes(before: Sequence[Node], now: Sequence[Node]) -> Iterator[str]:
    """What to say of nodes that joined or left."""
    total = _offer(sum(node.cpus for node in now), sum(node.gpus for node in now))
    for verb, some, others in (("joined", now, before), ("left", before, now)):
        known = {node.node_id for node in others}
        for node in some:
            if node.node_id not in known:
                yield f"a node has {verb}: {node.address} with {_offer(node.cpus, node.gpus)}; the cluster has {total} now"


def _offer(cpus: float, gpus: float) -> str:
    return f"{cpus:g} core{'s' * (cpus != 1)}" + (f" and {gpus:g} GPU{'s' * (gpus != 1)}" if gpus else "")


def _alive() -> list[Node]:
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [
        Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
        for node in found
        if node["Alive"]
    ]
