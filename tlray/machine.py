"""What this process has of its machine: memory, a clock, and threads beside its own."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_MEMORY_FRACTION = 0.5
"""The share of the machine's memory that an index, vectors or images may take by default; the rest is for the network and the
system."""


def memory_budget_bytes() -> int:
    """Bytes of memory that a command may fill with data unless its config says otherwise: half of this machine's."""
    return int(_MEMORY_FRACTION * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def is_past(moment: float | None) -> bool:
    """Whether this machine's clock has passed a time, in seconds since 1970; never where there is none."""
    return moment is not None and time.time() >= moment


@contextmanager
def repeated(work: Callable[[], object], seconds: float, *, name: str) -> Iterator[None]:
    """Do something again and again in a thread beside this one, until the context ends.

    Args:
        work: what is done; the first time after the first wait.
        seconds: to wait before each time.
        name: of the thread.
    """
    ended = threading.Event()

    def keep_on() -> None:
        while not ended.wait(seconds):
            work()

    thread = threading.Thread(target=keep_on, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
