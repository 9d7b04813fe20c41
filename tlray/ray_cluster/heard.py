"""What a cluster's raylets tell their drivers of workers that died, in a line a kind now and then.

Ray prints it in dozens of lines without a time, again with each worker, and beside it that tasks will be retried, as they are.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray._private import worker as ray_worker

from tlray.progress import say

AGAIN_SECONDS = 30.0
"""A kind that was told is told again no sooner, with how often it has happened since."""

MOST_LETTERS = 300

_MEMORY = re.compile(r"running low on memory\. Memory on the node \(IP: (\S+),.*?\) was (\S+) used / (\S+) limit")
_DIED = re.compile(r"A worker died or was killed .*Worker IP address: (\S+).*Worker PID: (\d+)", re.DOTALL)
_GONE = re.compile(r"The node with node id: \S+ and address: (\S+) .*has been marked dead", re.DOTALL)
_RAYLET = "Raylet is terminated"
_SPILLING = "external_storage.py"
_STATISTICS = "_StatsActor"
"""Of Ray Data: it counts for Ray's dashboard, and knows none of the counts before its process was started again."""

_RETRIED = re.compile(r"Task \S+ failed\. There are \S+ retries remaining")


class Heard:
    """Tells of what is heard, no kind too often.

    Args:
        tell: is told each line.
        clock: seconds.
    """

    def __init__(self, tell: Callable[[str], None] = say, clock: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._clock = tell, clock
        self._lock = threading.Lock()
        self._told: dict[str, float] = {}
        self._since: dict[str, int] = {}

    def hear(self, text: str) -> None:
        """Take a message of a raylet."""
        kind, line = _read(text)
        if not kind:
            return
        with self._lock:
            now = self._clock()
            times = self._since.get(kind, 0) + 1
            self._since[kind] = times
            if now - self._told.get(kind, -AGAIN_SECONDS) < AGAIN_SECONDS:
                return
            self._told[kind], self._since[kind] = now, 0
        self._tell(line if times == 1 else f"{line} ({times} times since it was last said)")


def _read(text: str) -> tuple[str, str]:
    """The kind of a message, and what to say of it; no kind of one that says nothing."""
    if found := _MEMORY.search(text):
        host, used, limit = found.groups()
        return f"memory {host}", (
            f"a worker on {host} was ended by Ray, as the machine's memory is nearly full ({used} of {limit}): its work is "
            "done again; where that repeats, give the node more memory or fewer CPUs, or end what else fills it"
        )
    if found := _DIED.search(text):
        host, process = found.groups()
        return f"died {host}", (
            f"a worker on {host} died (process {process}): its work is done again; where that repeats, look for the system's "
            "OOM killer (`dmesg`), a full /dev/shm, and in Ray's logs there"
        )
    if _RAYLET in text:
        return _RAYLET, "the raylet of a node died, and so the node: it was killed, or /dev/shm was full there (Ray's logs say)"
    if found := _GONE.search(text):
        return f"gone {found[1]}", f"the node at {found[1]} is gone, as it answers no more: its work is done again by others"
    if _SPILLING in text:
        last = text.strip().splitlines()[-1].rpartition("spilling objects: ")[2]
        return _SPILLING, (
            f"a node's object store is full, and cannot be written to its disk ({shortened(last)}): free room there; the run "
            "ends where nothing more fits"
        )
    if _STATISTICS in text:
        return (
            _STATISTICS,
            "Ray Data's statistics for its dashboard are lost, as their process was ended: the run does not need them",
        )
    if _RETRIED.search(text):
        return "", ""
    line = shortened(" ".join(text.split()))
    return line, f"Ray says: {line}"


def shortened(line: str) -> str:
    """At most MOST_LETTERS of a line; Ray's advice comes last."""
    return line if len(line) <= MOST_LETTERS else f"{line[:MOST_LETTERS]}..."


@contextmanager
def heard() -> Iterator[Callable[[str], None]]:
    """Say in our own words what raylets tell, while a cluster is joined; Ray has no setting for it.

    Yields:
        What takes a message of one that came on another way.
    """
    printed, unhandled, ours = ray_worker.print_to_stdstream, ray_worker._unhandled_error_handler, Heard()

    def take(data: dict[str, Any], *arguments: Any, **options: Any) -> None:
        if data.get("pid") == "raylet":
            ours.hear("\n".join(data["lines"]))
        else:
            printed(data, *arguments, **options)

    def take_unhandled(e: Exception) -> None:
        if _STATISTICS in str(e):
            ours.hear(str(e))
        else:
            unhandled(e)

    ray_worker.print_to_stdstream, ray_worker._unhandled_error_handler = take, take_unhandled
    try:
        yield ours.hear
    finally:
        ray_worker.print_to_stdstream, ray_worker._unhandled_error_handler = printed, unhandled
