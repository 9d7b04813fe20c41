"""A model that somebody else is training."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from tlray.lake.table.lease import hold

LEASE_SECONDS = 60.0
RENEWAL_SECONDS = 0.05


@contextlib.contextmanager
def held(model: Path, run_id: str) -> Iterator[None]:
    """Renewed far oftener than it need be: who asks sees that the holder is alive at the second look, on a slow machine too."""
    with hold(f"file://{model}", run_id, seconds=LEASE_SECONDS) as lease:
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(RENEWAL_SECONDS):
                lease.heartbeat()

        thread = threading.Thread(target=renew)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
