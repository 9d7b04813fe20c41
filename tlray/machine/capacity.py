"""Cores and memory that this process may use: of its machine, or less where a container, a service or its starter limits it.

Linux limits processes by control groups; see cgroups(7), and the kernel's documents of their versions for the names of files:
admin-guide/cgroup-v2.rst (cpu.max, memory.max, memory.high), scheduler/sched-bwc.rst (cpu.cfs_quota_us) and
admin-guide/cgroup-v1/memory.rst (memory.limit_in_bytes).
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_MEMORY_FRACTION = 0.5
"""The share of the memory that an index, vectors or images may take by default; the rest is for the network and the system."""

_GROUPS = Path("/sys/fs/cgroup")
_GROUPS_OF_PROCESS = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores that this process can keep busy: `usable_core_time`, rounded up."""
    return max(1, math.ceil(usable_core_time()))


def usable_core_time() -> float:
    """Cores that this process may run on, or less where its time on them is limited, as to half of one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([allowed, *(quota for folder in _groups("cpu") if (quota := _cores_of(folder)) is not None)])


def usable_memory_bytes() -> int:
    """Bytes of memory that this process can have, with what it has already."""
    limits = (limit for folder in _groups("memory") if (limit := _memory_bytes_of(folder)) is not None)
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def memory_budget_bytes() -> int:
    """Bytes of memory that a command may fill with data unless its config says otherwise: half of what it can have."""
    return int(_MEMORY_FRACTION * usable_memory_bytes())


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process is in, up to the root's.

    A container sees its own group as the root, but is told by some systems of a path that is there outside of it alone.

    Args:
        controller: `cpu` or `memory`.
    """
    for line in _read(_GROUPS_OF_PROCESS).splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root = _GROUPS  # all controllers, of version 2
        elif controller in controllers.split(","):
            root = _GROUPS / controller
        else:
            continue
        folder = root / path.lstrip("/")
        yield from (each for each in (folder, *folder.parents) if each.is_relative_to(root))


def _cores_of(folder: Path) -> float | None:
    """Cores that a group's processes may keep busy together; None without a limit."""
    quota, period = (_read(folder / "cpu.max").split() + [""] * 2)[:2]
    if not quota:
        quota, period = (_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _memory_bytes_of(folder: Path) -> int | None:
    """Bytes that a group's processes may have together, or before they are slowed down; None without a limit."""
    limits = (_read(folder / name).strip() for name in ("memory.max", "memory.high", "memory.limit_in_bytes"))
    return min((int(limit) for limit in limits if limit.isdecimal()), default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
