"""When Python looks for garbage: not while large libraries are loaded."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collecting() -> Iterator[None]:
    """Look for no garbage within this block, and for what it leaves as seldom as for what is old.

    For blocks that load libraries and networks: nearly all that they make stays, and Python looks through all of it again for
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
        if not gc.get_freeze_count():  # else unfreezing would take back what the program has frozen
            gc.freeze()  # both together make all objects old ones, without a look at them
            gc.unfreeze()
        gc.enable()
