"""Why a run stands still: said while nothing comes from the workers."""

import contextlib
import time
from collections.abc import Callable, Iterator

import ray
import ray.exceptions

from tlray.machine import repeated
from tlray.progress import readable_seconds, say

SILENT_SECONDS = 30.0
"""Without a word from the workers; a network of some hundred megabytes is loaded and tried in less."""

WATCH_SECONDS = 1.0


@contextlib.contextmanager
def said_while_waiting() -> Iterator[Callable[[], None]]:
    """Say every SILENT_SECONDS what the cluster is doing, as long as nothing comes.

    Yields:
        To be called whenever something has come.
    """
    last = said = time.monotonic()
    is_first = True

    def has_come() -> None:
        nonlocal last, is_first
        last, is_first = time.monotonic(), False

    def watch() -> None:
        nonlocal said
        now = time.monotonic()
        if now - max(said, last) >= SILENT_SECONDS:
            said = now
            say(f"nothing from the workers for {readable_seconds(now - last)}: {_state(is_first)}")

    with repeated(watch, WATCH_SECONDS, name="waiting"):
        yield has_come


def _state(is_first: bool) -> str:
    try:
        total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    except ray.exceptions.RayError as error:
        return f"the cluster does not answer ({type(error).__name__})"
    kinds = [(name, total.get(name, 0.0), free.get(name, 0.0)) for name in ("CPU", "GPU")]
    said = ", ".join(f"{left:g} of {count:g} {name}s free" for name, count, left in kinds if count)
    if any(count and left < count for _, count, left in kinds):
        return (
            f"{said}; {'they load the network, or' if is_first else 'they are at work, or'} other jobs hold what it waits for"
        )
    return f"{said or 'no CPU at all'}; no worker has started: the nodes may be coming or going (`ray status` says)"
