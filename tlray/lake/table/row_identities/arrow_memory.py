"""Where Arrow's buffers come from while many rows are sorted and compared."""

import pyarrow as pa

DECAY_MS = 1000
"""For how long memory that was freed is kept for the next buffer."""


def keep_freed_buffers() -> None:
    """Have this process take buffers from jemalloc, where pyarrow has it, which keeps freed ones for a moment.

    Arrow's usual mimalloc gives them back at once, and the kernel zeroes every page that it hands out again, which takes a
    fifth of the time of a large plan (`tests.bench.plan`). It is a setting of the whole process, so commands alone make it.
    Buffers that are there already stay.
    """
    if "jemalloc" in pa.supported_memory_backends():
        pa.jemalloc_set_decay_ms(DECAY_MS)
        pa.set_memory_pool(pa.jemalloc_memory_pool())
