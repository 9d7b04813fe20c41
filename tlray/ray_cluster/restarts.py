"""Workers that Ray ends as memory runs short: where it starts their actors again, it tells the driver nothing of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import ray
import ray.exceptions
from ray._private import state
from ray.core.generated import common_pb2, gcs_pb2

from tlray.machine.timers import repeated

LOOK_SECONDS = 5.0


class Restarts:
    """Looks what became of this job's actors.

    Args:
        tell: is told why Ray ended workers, in its own words.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
        self._restarts = 0
        self._known = {name for name, _ in _ended_for_memory()}  # before we came

    def look(self) -> None:
        """Tell of workers that were ended for their memory since the last look.

        All that a cluster knows of workers is asked for only where an actor was started again, as it may be much.
        """
        actors = state.actors(job_id=self._job).values()
        restarts = sum(actor["NumRestarts"] for actor in actors)
        if restarts <= self._restarts:
            return
        self._restarts = restarts
        for name, why in _ended_for_memory():
            if name not in self._known:
                self._known.add(name)
                self._tell(why)


def _ended_for_memory() -> Iterator[tuple[bytes, str]]:
    """Ids of a cluster's workers, and what Ray noted of their end."""
    for data in state.state._connect_and_get_accessor().get_worker_table():
        worker = gcs_pb2.WorkerTableData.FromString(data)  # type: ignore[attr-defined]
        if worker.exit_type == common_pb2.NODE_OUT_OF_MEMORY:  # type: ignore[attr-defined]
            yield worker.worker_address.worker_id, worker.exit_detail


@contextmanager
def said_if_restarted(tell: Callable[[str], None]) -> Iterator[None]:
    """Tell why, where Ray ends workers for their memory while a cluster is joined."""
    restarts = Restarts(tell)

    def look() -> None:
        with suppress(RuntimeError, OSError, ray.exceptions.RayError):  # a head that is gone is somebody else's to tell
            restarts.look()

    with repeated(look, LOOK_SECONDS, name="restarts"):
        yield
