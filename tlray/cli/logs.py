"""What the command does with log records: a library's caller decides for himself, the command shows them as plain lines."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tlray.progress import Lines


@contextmanager
def logged() -> Iterator[None]:
    """Show what tlray says, from INFO on, and of Ray Data only its warnings."""
    ours = logging.getLogger("tlray")
    levels = {ours: logging.INFO, logging.getLogger("ray.data"): logging.WARNING}
    # Its plan and progress are ours to report.
    levels[logging.getLogger("ray.data._internal.progress")] = logging.ERROR
    before = {logger: logger.level for logger in levels}
    propagated, handler = ours.propagate, Lines()
    try:
        for logger, level in levels.items():
            logger.setLevel(level)
        ours.addHandler(handler)
        ours.propagate = False
        yield
    finally:
        ours.removeHandler(handler)
        ours.propagate = propagated
        for logger, level in before.items():
            logger.setLevel(level)
