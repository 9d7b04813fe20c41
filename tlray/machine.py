"""What this machine has: its memory."""

import os

_MEMORY_FRACTION = 0.5
"""Of the machine's memory, what an index, vectors or images may take by default; the rest is for the network and the system."""


def memory_budget_bytes() -> int:
    """Bytes of memory that a command may fill with data unless its config says otherwise: half of this machine's."""
    return int(_MEMORY_FRACTION * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
