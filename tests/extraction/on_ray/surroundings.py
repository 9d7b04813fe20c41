"""Nodes in surroundings of their own: file systems that can be filled, and a memory that is told.

For root on Linux. What is mounted is seen by the node's processes alone, and goes with them.
"""

import os
import subprocess
from pathlib import Path


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
