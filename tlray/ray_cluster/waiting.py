"""Why work on a cluster stands still: said while it waits for the workers and nothing comes from them."""

import time
from collections.abc import Generator, Iterable
from typing import TypeVar

import ray
import ray.exceptions

from tlray.machine.timers import repeated
from tlray.progress import readable_seconds, say

SILENT_SECONDS = 30.0
"""How long a run waits without a word from the workers; a network of some hundred megabytes is loaded and tried in less."""

WATCH_SECONDS = 1.0

Result = TypeVar("Result")


def said_while_waiting(results: Iterable[Result], *, left: object = "") -> Generator[Result, None, None]:
    """What workers give, and every SILENT_SECONDS a word on what the cluster is doing, as long as the next of it does not come.

    While whoever takes a result is busy with it, with a commit say, nobody waits.

    Args:
        results: what workers give.
        left: says, as a string, what is still to come.
    """
    since: float | None = None
    said, is_first = 0.0, True

    def watch() -> None:
        nonlocal said
        now, began = time.monotonic(), since
        if began is not None and now - max(said, began) >= SILENT_SECONDS:
            said = now
            state = "; ".join(filter(None, (_state(is_first), str(left))))
            say(f"nothing from the workers for {readable_seconds(now - began)}: {state}")

    upcoming = iter(results)
    with repeated(watch, WATCH_SECONDS, name="waiting"):
        while True:
            since = time.monotonic()
            try:
                result = next(upcoming)
            except StopIteration:
                return
            since, is_first = None, False
            yield result


def _state(is_first: bool) -> str:
    try:
        total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    except ray.exceptions.RayError as error:
        return f"the cluster does not answer ({type(error).__name__})"
    kinds = [(name, total.get(name, 0.0), free.get(name, 0.0)) for name in ("CPU", "GPU")]
    said = ", ".join(f"{left:g} of {count:g} {name}s free" for name, count, left in kinds if count)
    if any(count and left < count for _, count, left in kinds):
        at = "they are starting" if is_first else "they are at work"
        return f"{said}; {at}, or other jobs hold what it waits for"
    return f"{said or 'no CPU at all'}; no worker has started: the nodes may be coming or going (`ray status` says)"
