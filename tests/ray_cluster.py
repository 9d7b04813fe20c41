"""A Ray cluster of one node on this machine, ended by process id."""

import contextlib
import os
import random
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tlray.demo.s3_server import is_free

START_SECONDS = 600
START_ATTEMPTS = 3
GAVE_UP = "timed out during startup"
"""What `ray start` says where a node was not there within 30 s, which cannot be set; on a busy machine that happens."""
PORTS = range(23_000, 30_000)
"""Under those that Linux gives to whoever asks for any, over those of Ray's own workers and of `tlray.demo.s3_server`."""


class RayCluster:
    """`ray start --head --block` as a context manager.

    Attributes:
        address: for a driver's `RAY_ADDRESS`; the token that it needs as well is in this process's environment.
        dashboard: its URL, where `ray job submit` goes; there is one only when asked for, as it takes seconds of two cores.
    """

    def __init__(self, folder: Path, *, cpus: int = 2, gpus: int = 0, dashboard: bool = False) -> None:
        self._folder = folder
        self._cpus, self._gpus, self._has_dashboard = cpus, gpus, dashboard
        self._port, self._dashboard_port, self._agent_port = free_ports(3)
        self.dashboard = f"http://127.0.0.1:{self._dashboard_port}"
        self.address = f"127.0.0.1:{self._port}"
        self.env = {"RAY_ADDRESS": self.address}

    def __enter__(self) -> "RayCluster":
        for _ in range(START_ATTEMPTS):
            if self._starts():
                return self
            self.__exit__()
            if GAVE_UP not in self.log_path.read_text():
                break
        raise RuntimeError(f"Ray did not start: {self.log_path.read_text()[-3000:]}")

    def _starts(self) -> bool:
        self.log_path = self._folder / "ray.log"
        # Of its own: there Ray notes the latest cluster, which its jobs join whichever they were submitted to. Its sockets'
        # names are too long for pytest's folders.
        self._temporary = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    str(Path(sysconfig.get_path("scripts")) / "ray"),
                    *("start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={self._port}"),
                    f"--temp-dir={self._temporary.name}",
                    *(f"--num-cpus={self._cpus}", f"--num-gpus={self._gpus}", "--disable-usage-stats"),
                    *("--dashboard-host=127.0.0.1", f"--dashboard-port={self._dashboard_port}"),
                    f"--dashboard-agent-listen-port={self._agent_port}",  # else it is the same one for all clusters
                    *(f"--include-dashboard={self._has_dashboard}", f"--object-store-memory={512 * 2**20}"),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return started(self._process, self.log_path)

    def __exit__(self, *_: object) -> None:
        # `--block` ends its own children on SIGTERM; `ray stop` would end everybody's.
        self._process.terminate()
        try:
            self._process.wait(3)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._temporary.cleanup()

    def pids(self, named: str) -> list[int]:
        """Processes of this cluster whose title contains a text; Ray names its workers after what they run."""
        return [pid for pid in processes_named(named) if self._process.pid in _ancestors(pid)]


def started(process: subprocess.Popen[bytes], log_path: Path) -> bool:
    """Wait until `ray start --block` says that its node is there; False once it has ended or START_SECONDS are over."""
    deadline = time.monotonic() + START_SECONDS
    while b"Ray runtime started" not in log_path.read_bytes():
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def processes_named(text: str) -> list[int]:
    """Process ids whose title contains a text; Ray names its workers after what they run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if text.encode() in title:
                found.append(int(entry.name))
    return found


def _ancestors(pid: int) -> Iterator[int]:
    """Of a process, while they live."""
    with contextlib.suppress(OSError):
        while pid > 1:
            # The title before it, in parentheses, may contain anything.
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            yield pid


def free_ports(count: int) -> list[int]:
    """Of loopback, which nothing listens at."""
    free = filter(is_free, random.SystemRandom().sample(PORTS, len(PORTS)))
    found = list(islice(free, count))
    if len(found) == count:
        return found
    raise RuntimeError(f"no {count} ports of {PORTS} are free")
