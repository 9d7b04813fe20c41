"""Where a run works: in this process or on Ray."""

import os
import sys

import torch

from tlray.extract.units import LANES_PER_PROCESS
from tlray.progress import say
from tlray.ray_address import is_there


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
    if has_joined or is_there() or torch.cuda.is_available() or cores > LANES_PER_PROCESS:
        return False
    say(f"in this process, as there is no Ray cluster and {cores} cores need none; --no-local starts one")
    return True
