"""What the command does with log records: a library's caller decides for himself, the command shows them as lines."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tlray.progress import Lines


@contextmanager
def logged() -> Iterator[None]:
    """Show what tlray says, from INFO on."""
    ours, handler = logging.getLogger("tlray"), Lines()
    level, propagated = ours.level, ours.propagate
    try:
        ours.setLevel(logging.INFO)
        ours.addHandler(handler)
        ours.propagate = False
        yield
    finally:
        ours.removeHandler(handler)
        ours.propagate = propagated
        ours.setLevel(level)
