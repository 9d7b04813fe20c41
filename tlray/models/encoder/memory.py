"""Keeping the memory that a network's layers use between its passes."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
"""Numbers of mallopt's parameters in glibc's malloc.h."""

KEPT_BYTES = 2**30
"""Blocks up to this size come from the heap, and so much of what is free at its end stays there."""

OLD_LIMIT_BYTES = 2**25
"""The most that glibc before 2.35 takes as such a size (half of its HEAP_MAX_SIZE)."""

GROWTH_BYTES = 2**28
"""By which the heap grows; what is never written to takes no memory."""


def keep_freed_memory() -> None:
    """Have glibc reuse what tensors free, for the whole process; does nothing with another C library.

    For processes of our own, the command's and its workers', which call it first; a program that uses the library may do so.

    Torch asks malloc for each layer's output. By itself glibc maps memory of this size anew each time and gives it back at
    once, and the kernel must zero every page before a layer writes to it: a third of the time of a small network at
    bf16 (docs/benchmarks.md). The peak of memory stays what it was.

    One heap for all threads, as each further one is made of pieces of 64 MiB that go back to the system when they are empty.
    Threads that are there already keep theirs.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
    libc.mallopt(_M_TOP_PAD, GROWTH_BYTES)
    if not libc.mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES):
        libc.mallopt(_M_MMAP_THRESHOLD, OLD_LIMIT_BYTES)
    libc.mallopt(_M_ARENA_MAX, 1)


def as_environment() -> dict[str, str]:
    """The same for a process that is yet to start, by the names that glibc's manual gives; others do not know them."""
    return {
        "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
        "MALLOC_TOP_PAD_": str(GROWTH_BYTES),
        "MALLOC_MMAP_THRESHOLD_": str(OLD_LIMIT_BYTES),  # the actor raises it, where that is possible
        "MALLOC_ARENA_MAX": "1",
    }
