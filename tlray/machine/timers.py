"""A clock, threads beside the caller's, and how late what they wait for may end."""

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PR_SET_TIMERSLACK = 29
"""Number of prctl's operation in Linux's prctl.h."""


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


@contextmanager
def late_timers(seconds: float) -> Iterator[None]:
    """Let what this thread waits for with a time limit, and threads that it starts meanwhile, end so much later (Linux alone).

    The kernel then wakes them together with others; what is waited for without a limit, or comes before it, is not late. See
    PR_SET_TIMERSLACK in prctl(2).

    Args:
        seconds: at most.
    """
    _set_timer_slack(int(seconds * 1e9))
    try:
        yield
    finally:
        _set_timer_slack(0)  # the thread's default


def _set_timer_slack(nanoseconds: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(nanoseconds))
