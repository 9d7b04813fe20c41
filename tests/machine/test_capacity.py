"""Cores and memory by what limits a process: its affinity and its control groups, of both versions."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tlray.machine import capacity
from tlray.machine.capacity import memory_budget_bytes, usable_core_time, usable_cores, usable_memory_bytes

CPU_GROUPS = Path("/sys/fs/cgroup/cpu")
"""Of version 1."""

IN_A_PROCESS = "from tlray.machine.capacity import usable_cores; print(usable_cores())"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")


class Groups:
    """A tree of files as the kernel shows control groups."""

    def __init__(self, folder: Path) -> None:
        self.root, self.of_process = folder / "cgroup", folder / "of_process"

    def write(self, of_process: str, files: dict[str, str]) -> None:
        """What the process is in, and files of the tree."""
        self.of_process.write_text(of_process)
        for name, content in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content + "\n")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    """On a machine of 64 cores and 256 GiB."""
    made = Groups(tmp_path)
    monkeypatch.setattr(capacity, "_GROUPS", made.root)
    monkeypatch.setattr(capacity, "_GROUPS_OF_PROCESS", made.of_process)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)))
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 256 * 2**30 // 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    return made


def test_without_control_groups_all_is_usable(groups: Groups) -> None:
    assert (usable_cores(), usable_memory_bytes(), memory_budget_bytes()) == (64, 2**38, 2**37)


@pytest.mark.parametrize(("quota", "cores"), [("400000", 4), ("150000", 2), ("20000", 1), ("max", 64), ("6400000000", 64)])
def test_a_containers_limits_of_version_2(groups: Groups, quota: str, cores: int) -> None:
    groups.write("0::/\n", {"cpu.max": f"{quota} 100000", "memory.max": "8589934592"})
    assert (usable_cores(), usable_memory_bytes(), memory_budget_bytes()) == (cores, 2**33, 2**32)
    assert usable_core_time() == (int(quota) / 10**5 if cores < 64 else 64)


def test_the_tightest_of_nested_groups_counts(groups: Groups) -> None:
    groups.write(
        "0::/system.slice/nightly.service\n",
        {
            "system.slice/cpu.max": "300000 100000",
            "system.slice/memory.max": "max",
            "system.slice/nightly.service/cpu.max": "800000 100000",
            "system.slice/nightly.service/memory.max": "4294967296",
            "elsewhere/cpu.max": "100000 100000",
        },
    )
    assert (usable_cores(), usable_memory_bytes()) == (3, 2**32)


def test_memory_above_which_processes_are_slowed_down(groups: Groups) -> None:
    groups.write("0::/\n", {"memory.max": "8589934592", "memory.high": "4294967296"})
    assert usable_memory_bytes() == 2**32


def test_version_1_and_a_path_that_the_container_does_not_see(groups: Groups) -> None:
    groups.write(
        "4:memory:/docker/1f2e\n3:cpu,cpuacct:/docker/1f2e\n1:name=systemd:/docker/1f2e\n",
        {
            "cpu/cpu.cfs_quota_us": "250000",
            "cpu/cpu.cfs_period_us": "100000",
            "memory/memory.limit_in_bytes": "2147483648",
        },
    )
    assert (usable_cores(), usable_memory_bytes()) == (3, 2**31)
    groups.write(
        "3:cpu,cpuacct:/\n4:memory:/\n",
        {
            "cpu/cpu.cfs_quota_us": "-1",
            "memory/memory.limit_in_bytes": "9223372036854771712",
        },
    )
    assert (usable_cores(), usable_memory_bytes()) == (64, 2**38)


def test_cores_that_the_process_may_run_on() -> None:
    one = min(os.sched_getaffinity(0))
    command = ["taskset", "--cpu-list", str(one), sys.executable, "-c", IN_A_PROCESS]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """A real control group whose processes get half a core."""
    folder = CPU_GROUPS / f"tlray-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "cpu.cfs_quota_us").write_text("50000")
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield folder
    folder.rmdir()


def test_a_real_control_group(half_a_core: Path) -> None:
    code = f"open({str(half_a_core / 'cgroup.procs')!r}, 'w').write('0'); {IN_A_PROCESS}"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
