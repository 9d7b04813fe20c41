"""When Python looks for garbage: not while large libraries are loaded."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

FROZEN_BY_PROGRAM = 1000
"""Where so many objects are frozen, a program has done it: a bare interpreter has 8,000 to freeze, and Python 3.12 keeps some
hundreds frozen by itself."""


@contextmanager
def without_collecting() -> Iterator[None]:
    """Look for no garbage within this block, and for what it leaves as seldom as for what is old.

    For blocks that load libraries: nearly all that they make stays, and Python looks through all of it again for
    every few thousand objects more, which is a sixth of the time that torch and timm take (docs/benchmarks.md). It holds for
    all threads of the process. Within another such block, or where the process collects no garbage at all, it does nothing.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() < FROZEN_BY_PROGRAM:  # else unfreezing would take back what the program has frozen
            gc.freeze()  # both together make all objects old ones, without a look at them
            gc.unfreeze()
        gc.enable()
