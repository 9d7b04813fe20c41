"""A Ray cluster on this machine, of one node or more, ended by process id."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tlray.demo.s3_server import is_free

START_SECONDS = 600
START_ATTEMPTS = 5
GAVE_UP = "timed out during startup"
"""What `ray start` says where a node was not there within 30 s, which cannot be set; on a busy machine that happens."""
OBJECT_STORE_BYTES = 512 * 2**20
PORTS = range(23_000, 30_000)
"""Under those that Linux gives to whoever asks for any, over those of Ray's own workers and of `tlray.demo.s3_server`."""


class RayCluster:
    """`ray start --head --block` as a context manager.

    Attributes:
        address: for a driver's `RAY_ADDRESS`; the token that it needs as well is in this process's environment.
        dashboard: its URL, where `ray job submit` goes; there is one only when asked for, as it takes seconds of two cores.
    """

    def __init__(
        self,
        folder: Path,
        *,
        cpus: int = 2,
        gpus: int = 0,
        dashboard: bool = False,
        env: Mapping[str, str] | None = None,
        object_store_bytes: int = OBJECT_STORE_BYTES,
        within: Sequence[str] = (),
        more: Sequence[str] = (),
        groups: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts nothing yet.

        Args:
            folder: for logs.
            cpus: of the head.
            gpus: of the head, be there any or not.
            dashboard: whether it has one.
            env: more environment variables of all nodes, and so of their workers.
            object_store_bytes: of each node.
            within: a command that runs `ray start` in surroundings of its own.
            more: arguments of the head's `ray start`.
            groups: node types of an autoscaler (`available_node_types`), which starts nodes of them on this machine.
        """
        self._folder, self._groups = folder, groups
        self._cpus, self._gpus, self._has_dashboard = cpus, gpus, dashboard
        self._node_env, self._object_store_bytes = {**os.environ, **(env or {})}, object_store_bytes
        self._within, self._more = within, more
        self._port, self._dashboard_port, self._agent_port = free_ports(3)
        self.dashboard = f"http://127.0.0.1:{self._dashboard_port}"
        self.address = f"127.0.0.1:{self._port}"
        self.env = {"RAY_ADDRESS": self.address}

    def __enter__(self) -> "RayCluster":
        # Of its own: there Ray notes the latest cluster, which its jobs join whichever they were submitted to. Its sockets'
        # names are too long for pytest's folders.
        self._temporary = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        head = ["--head", f"--port={self._port}", f"--temp-dir={self._temporary.name}", f"--num-gpus={self._gpus}"]
        head += [f"--include-dashboard={self._has_dashboard}", "--dashboard-host=127.0.0.1"]
        head += [f"--dashboard-port={self._dashboard_port}", f"--dashboard-agent-listen-port={self._agent_port}"]
        env = {}
        if self._groups is not None:
            config = self._folder / "autoscaler.json"
            config.write_text(json.dumps(autoscaler_config(self.address, self._groups)))
            head += [f"--autoscaling-config={config}"]
            env = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        try:
            self._process = self._start("ray", [*head, *self._more, f"--num-cpus={self._cpus}"], env)
        except BaseException:
            self._temporary.cleanup()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        _end(self._process)
        kill_all_of(self._process)  # an autoscaler's nodes are children of its own
        self._temporary.cleanup()

    @contextlib.contextmanager
    def node(
        self, cpus: int, env: Mapping[str, str] | None = None, *, within: Sequence[str] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """One node more, on this machine as well; yields its `ray start`.

        Args:
            cpus: that it offers.
            env: more environment variables.
            within: the beginning of a command that keeps its processes to a part of this machine, such as `taskset`.
        """
        (agent_port,) = free_ports(1)
        # Any ports for its workers: the head's have the range that is Ray's default.
        ports = [f"--dashboard-agent-listen-port={agent_port}", "--min-worker-port=0", "--max-worker-port=0"]
        arguments = [f"--address={self.address}", f"--num-cpus={cpus}", "--num-gpus=0", *ports]
        process = self._start(f"node-{agent_port}", arguments, env or {}, within)
        try:
            yield process
        finally:
            _end(process)

    def _start(
        self, name: str, arguments: list[str], env: Mapping[str, str], within: Sequence[str] | None = None
    ) -> subprocess.Popen[bytes]:
        log_path = self._folder / f"{name}.log"
        command = [*(within or self._within), str(Path(sysconfig.get_path("scripts")) / "ray"), "start", "--block", *arguments]
        command += ["--node-ip-address=127.0.0.1", f"--object-store-memory={self._object_store_bytes}", "--disable-usage-stats"]
        for _ in range(START_ATTEMPTS):
            with log_path.open("wb") as log:
                process = subprocess.Popen(
                    command, stdout=log, stderr=subprocess.STDOUT, env={**self._node_env, **env}, start_new_session=True
                )
            if started(process, log_path):
                return process
            _end(process)
            if GAVE_UP not in log_path.read_text():
                break
        raise RuntimeError(f"Ray did not start: {log_path.read_text()[-3000:]}")

    @property
    def service_discovery(self) -> Path:
        """The file in which its head node, with a dashboard, keeps the metrics addresses of all nodes for Prometheus."""
        return Path(self._temporary.name) / "prom_metrics_service_discovery.json"

    @property
    def pid(self) -> int:
        """Of the head's `ray start`."""
        return self._process.pid

    def pids(self, named: str, of: "subprocess.Popen[bytes] | None" = None) -> list[int]:
        """Processes of the head, or of another node, whose title contains a text; Ray names workers after what they run."""
        return [pid for pid in processes_named(named) if (of or self._process).pid in _ancestors(pid)]


def _end(process: subprocess.Popen[bytes]) -> None:
    # `--block` ends its own children on SIGTERM; `ray stop` would end everybody's.
    process.terminate()
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def kill_all_of(process: subprocess.Popen[bytes]) -> None:
    """`kill -9` of all that is left of the session that a process began, the children of what it started too."""
    while pids := [pid for pid in _all_pids() if _session_of(pid) == process.pid]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.poll()
        time.sleep(0.02)
    process.wait()


def autoscaler_config(address: str, groups: Mapping[str, Any]) -> dict[str, Any]:
    """Of Ray's autoscaler over its fake provider, whose nodes are processes on this machine."""
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    unused: dict[str, Any] = {name: {} for name in ("auth", "docker", "file_mounts")}
    names = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    unused |= {f"{name}_commands": [] for name in names}
    unused |= {"cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": []}
    return {
        "cluster_name": "here",
        "max_workers": 8,
        "provider": {"type": "fake_multinode", "gcs_address": address, "launch_multiple": True},
        "available_node_types": {"ray.head.default": head, **groups},
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        **unused,
    }


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
    for pid in _all_pids():
        with contextlib.suppress(OSError):
            if text.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _session_of(pid: int) -> int | None:
    """Of a process that lives; a dead one whose parent has not asked for it counts no more."""
    with contextlib.suppress(OSError):
        state, _, _, session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
        return int(session) if state != "Z" else None
    return None


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
