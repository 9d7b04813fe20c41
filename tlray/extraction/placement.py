"""Where a run works: in this process or on Ray."""

import os
import sys

from tlray.progress import say
from tlray.ray_cluster.address import is_there, named, starts_own

LANES_PER_PROCESS = 8
"""Cores of one process without GPUs: its lanes share one interpreter, of which an image needs about a hundredth of the
time that it takes to compute, and one copy of the weights."""


def starts_cluster(local: bool | None) -> bool:
    """Whether a run is sure to start a cluster of its own, as far as can be told before torch is imported."""
    return named() == "local" if local is None else not local and starts_own()


def works_here(local: bool | None) -> bool:
    """Whether a run needs no Ray.

    Where nobody says, and there is no cluster to join, one process does as well as long as it can use the whole machine: it
    starts ten seconds earlier, and Ray's own processes take a tenth of a core.

    Args:
        local: of the config.
    """
    if local is not None:
        return local
    has_joined = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    cores = os.cpu_count() or 1
    if has_joined or is_there() or cores > LANES_PER_PROCESS:
        return False
    import torch  # takes seconds

    if torch.cuda.is_available():
        return False
    say(f"in this process, as there is no Ray cluster and {cores} cores need none; --no-local starts one")
    return True
