"""What a run sets for its whole process, where that is its own: for a command, never for a program that uses the library."""

from collections.abc import Iterator
from contextlib import contextmanager

from tlray.extraction.run.stop import Stop
from tlray.lake.table.row_identities.arrow_memory import keep_freed_buffers


@contextmanager
def own_process() -> Iterator[Stop]:
    """Take Arrow's memory from where planning is fastest, and listen to SIGTERM.

    Yields:
        What asks the run to stop.
    """
    keep_freed_buffers()
    with Stop() as stop:
        yield stop
