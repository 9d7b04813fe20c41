"""Nodes in surroundings of their own: file systems that can be filled, and memory that is told, or that the kernel counts.

For root on Linux. What is mounted is seen by the node's processes alone, and goes with them.
"""

import contextlib
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self


def why_no_mounts() -> str | None:
    """What keeps this machine from giving a process file systems of its own, or None."""
    if os.geteuid() != 0:
        return "mount namespaces need root"
    tried = subprocess.run([*with_mounts("mount -t tmpfs tmpfs /mnt"), "true"], capture_output=True, text=True)
    return f"this machine makes no mount namespaces: {tried.stderr}" if tried.returncode else None


def with_mounts(*mounts: str) -> list[str]:
    """A command that runs another one where these have been mounted first."""
    return ["unshare", "--mount", "sh", "-c", " && ".join(["mount --make-rprivate /", *mounts, 'exec "$@"']), "sh"]


def tmpfs(place: Path | str, megabytes: int) -> str:
    """What mounts a file system of so many megabytes."""
    return f"mkdir -p {place} && mount -t tmpfs -o size={megabytes}m tmpfs {place}"


def fill(pid: int, place: Path | str) -> Path:
    """Write a file until there is no more room, in the surroundings of a process; its path from here."""
    path = Path(f"/proc/{pid}/root{place}/filler")
    assert path.parent.stat().st_dev not in {Path(ours).stat().st_dev for ours in ("/", "/dev/shm")}, "that is this machine's"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError:
            return path


class ToldMemory:
    """A machine's memory as its control group tells it, whatever it is: by files that are mounted over the real ones.

    Attributes:
        folder: of the files.
        mount: what mounts them.
    """

    LIMIT_BYTES = 4 * 2**30

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.mount = folder, f"mount --bind {folder} /sys/fs/cgroup"
        (folder / "memory.max").write_text(f"{self.LIMIT_BYTES}\n")
        self.use(0.2)

    def use(self, share: float) -> None:
        """So much of it is in use now."""
        used = int(share * self.LIMIT_BYTES)
        (self.folder / "memory.stat").write_text(f"anon {used}\nshmem 0\ninactive_file 0\nactive_file 0\nswapcached 0\n")
        (self.folder / "memory.current").write_text(f"{used}\n")


CONTROLLERS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.oom_control"),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.swap.max", "memory.events"),
)
"""Of memory, in version 1 of control groups and in version 2: where, the files of both limits, and that of what was killed."""


class LittleMemory:
    """A control group with little memory as a context manager: the kernel kills processes in it that take more.

    What a process had before it came counts for nothing, only what it takes from then on.
    """

    def __init__(self, megabytes: int) -> None:
        self._bytes = megabytes * 2**20

    @staticmethod
    def why_not() -> str | None:
        """What keeps this machine from having one, or None."""
        try:
            with LittleMemory(100):
                return None
        except OSError as error:
            return f"no control group of memory can be made here: {error}"

    def __enter__(self) -> Self:
        self._parent, limit, swap, self._events = CONTROLLERS[0 if CONTROLLERS[0][0].is_dir() else 1]
        self._folder = self._parent / f"tlray-test-{os.getpid()}"
        self._folder.mkdir()
        try:
            (self._folder / "cgroup.procs").read_text()  # else it is a folder as any other
            (self._folder / limit).write_text(str(self._bytes))
            if (self._folder / swap).exists():
                (self._folder / swap).write_text("0" if swap == "memory.swap.max" else str(self._bytes))
        except OSError:
            self._folder.rmdir()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for pid in (self._folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (self._parent / "cgroup.procs").write_text(pid)
        self._folder.rmdir()

    def take(self, pid: int) -> None:
        """Put a process in; what it starts from now on is in it too."""
        (self._folder / "cgroup.procs").write_text(str(pid))

    @property
    def killed(self) -> int:
        """Processes that the kernel has killed in it."""
        lines = (self._folder / self._events).read_text().splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"])
