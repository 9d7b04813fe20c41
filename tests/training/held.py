"""A model that somebody else is training."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tlray.lake.place.lease import hold
from tlray.machine.timers import repeated

LEASE_SECONDS = 60.0
RENEWAL_SECONDS = 0.05


@contextlib.contextmanager
def held(model: Path, run_id: str) -> Iterator[None]:
    """Renewed far oftener than it need be: who asks sees that the holder is alive at the second look, on a slow machine too."""
    with (
        hold(f"file://{model}", run_id, seconds=LEASE_SECONDS) as lease,
        repeated(lease.heartbeat, RENEWAL_SECONDS, name="held"),
    ):
        yield
