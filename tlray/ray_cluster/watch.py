"""Whether the cluster that was joined is still there.

Ray itself waits for it in silence, and then ends the process in silence.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from tlray.errors import GO_ON
from tlray.machine.timers import repeated
from tlray.progress import say
from tlray.ray_cluster.address import is_listening

LOOK_SECONDS = 5.0

FAILURES = 2
"""In a row, after which it is said: a busy machine may miss one."""


@dataclass
class _Place:
    """Something of a cluster that a driver cannot do without.

    Attributes:
        what: for people.
        host: where it listens.
        port: likewise.
        meaning: if it does not answer.
        failures: in a row.
    """

    what: str
    host: str
    port: int
    meaning: str
    failures: int = 0

    def look(self, tell: Callable[[str], None]) -> None:
        """Say once that it does not answer, and once that it does again."""
        before = self.failures
        self.failures = 0 if is_listening(self.host, self.port) else before + 1
        where = f"{self.what} ({self.host}:{self.port})"
        if self.failures == FAILURES:
            tell(f"{where} does not answer: {self.meaning}")
        if before >= FAILURES and not self.failures:
            tell(f"{where} answers again")


@contextmanager
def said_if_gone(tell: Callable[[str], None] = say) -> Iterator[None]:
    """Say when the head of the cluster, or the node of this process, is gone, as long as the cluster is joined."""
    places = [*_head(), *_own_node()]

    def look() -> None:
        for place in places:
            place.look(tell)

    with repeated(look, LOOK_SECONDS, name="cluster"):
        yield


def _head() -> Iterator[_Place]:
    host, _, port = str(ray.get_runtime_context().gcs_address).rpartition(":")
    yield _Place(
        "the cluster's head",
        host,
        int(port),
        "Ray waits for it for about a minute, and then ends this process without a word (exit code 1); look after the head, "
        f"then {GO_ON}",
    )


def _own_node() -> Iterator[_Place]:
    own = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["NodeID"] == own:
            meaning = f"without it this process cannot go on, and Ray may end it without a word (exit code 1); {GO_ON}"
            yield _Place("Ray's node on this machine", node["NodeManagerAddress"], node["NodeManagerPort"], meaning)
