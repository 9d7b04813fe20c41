"""Hosts with addresses of their own on one machine: network namespaces joined by a bridge, and processes in them.

For root on Linux with iproute2. All names carry the test's process id. The bridge has a namespace of its own too, so this
machine's own interfaces, routes and firewall have no part in it, and nothing reaches the world outside. Namespaces and the
processes in them end with the `with`.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.ray_cluster import GAVE_UP, START_ATTEMPTS, started

NETWORK = "10.213.77"
"""Of the bridge, private as all of 10.0.0.0/8; `.1` is the gateway, `.11` and up are the hosts."""

_LISTEN = """
import socket, sys
with socket.socket(fileno=int(sys.argv[2])) as way, socket.create_server((sys.argv[1], 0)) as listener:
    socket.send_fds(way, [b"."], [listener.fileno()])
"""


def why_not() -> str | None:
    """What keeps this machine from having hosts, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need iproute2's `ip`"
    probe = f"tlp{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    bridged = subprocess.run(["ip", "-netns", probe, "link", "add", probe, "type", "bridge"], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "delete", probe], capture_output=True)
    if made.returncode or bridged.returncode:
        return f"this machine makes no network namespaces: {made.stderr}{bridged.stderr}"
    return None


class Hosts:
    """So many hosts as a context manager.

    Attributes:
        gateway: the bridge's own address, which all hosts reach; `listen` takes connections there.
        addresses: of the hosts.
    """

    def __init__(self, count: int) -> None:
        self._tag = f"tl{os.getpid() % 100_000}"
        self.gateway = f"{NETWORK}.1"
        self.addresses = [f"{NETWORK}.{11 + index}" for index in range(count)]
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            _ip("netns", "add", self._tag)
            _ip("-netns", self._tag, "link", "add", self._tag, "type", "bridge")
            _ip("-netns", self._tag, "address", "add", f"{self.gateway}/24", "dev", self._tag)
            _ip("-netns", self._tag, "link", "set", self._tag, "up")
            for index, address in enumerate(self.addresses):
                name, outer, inner = self._names(index)
                _ip("netns", "add", name)
                _ip("-netns", self._tag, "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
                _ip("-netns", self._tag, "link", "set", outer, "master", self._tag, "up")
                _ip("-netns", name, "address", "add", f"{address}/24", "dev", inner)
                _ip("-netns", name, "link", "set", inner, "up")
                _ip("-netns", name, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for index in range(len(self.addresses)):
            self.end(index)
        for process in self._processes:
            process.wait(300)
        for name in (*(self._names(index)[0] for index in range(len(self.addresses))), self._tag):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)  # and with it the ends of cables in it

    def listen(self) -> socket.socket:
        """A socket of this process that listens at the gateway's address, at any port: a process there makes and sends it."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            command = ["ip", "netns", "exec", self._tag, sys.executable, "-c", _LISTEN, self.gateway, str(theirs.fileno())]
            subprocess.run(command, pass_fds=[theirs.fileno()], check=True)
            (descriptor,) = socket.recv_fds(ours, 1, 1)[1]
        return socket.socket(fileno=descriptor)

    def start(self, host: int, command: list[str], *, env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        """A process on a host."""
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self._names(host)[0], *command],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def pids(self, host: int, named: str = "") -> list[int]:
        """Processes of a host, or those of them whose title contains a text."""
        found = subprocess.run(["ip", "netns", "pids", self._names(host)[0]], capture_output=True, text=True).stdout
        pids = [int(line) for line in found.split()]
        return [pid for pid in pids if named in _title(pid)]

    def end(self, host: int, *, first: str = "") -> None:
        """`kill -9` of all that runs on a host, as a power cut does; first of those whose title contains a text."""
        for pid in self.pids(host, first):
            _kill(pid)
        deadline = time.monotonic() + 300
        while (pids := self.pids(host)) and time.monotonic() < deadline:  # what is being started now comes to light later
            for pid in pids:
                _kill(pid)
            time.sleep(0.05)

    def cut(self, host: int) -> None:
        """Take a host off the network, as pulling its cable does: packets vanish, and nobody is told."""
        _ip("-netns", self._tag, "link", "set", self._names(host)[1], "nomaster")

    def mend(self, host: int) -> None:
        """Put it back."""
        _ip("-netns", self._tag, "link", "set", self._names(host)[1], "master", self._tag)

    def _names(self, index: int) -> tuple[str, str, str]:
        """Of the namespace, the bridge's end of its cable, and its own (15 characters at most)."""
        return f"{self._tag}h{index}", f"{self._tag}o{index}", f"{self._tag}i{index}"


class RayHosts:
    """A Ray cluster over hosts as a context manager: the head on the first, which takes no tasks, and workers on the others.

    Attributes:
        env: of a driver on one of the hosts.
    """

    def __init__(self, hosts: Hosts, *, cpus: int, env: dict[str, str], dashboard: bool = False) -> None:
        self._hosts, self._cpus, self._has_dashboard = hosts, cpus, dashboard
        self._address = f"{hosts.addresses[0]}:6379"
        self.env = {**os.environ, **env, "RAY_ADDRESS": self._address}

    def __enter__(self) -> Self:
        # Short, as the paths of Unix sockets must be.
        self._folder = Path(tempfile.mkdtemp(prefix="tlr-", dir="/tmp"))
        for index in range(len(self._hosts.addresses)):
            self.start_node(index)
        return self

    def __exit__(self, *_: object) -> None:
        for index in range(len(self._hosts.addresses)):
            self.kill_node(index)
        shutil.rmtree(self._folder, ignore_errors=True)

    def start_node(self, host: int) -> None:
        """Start the head or a worker node, and wait until it is there."""
        role = ["--head", "--port=6379", f"--temp-dir={self._folder}"]
        role += [f"--include-dashboard={self._has_dashboard}", "--dashboard-host=0.0.0.0"]
        role = role if host == 0 else [f"--address={self._address}"]
        command = [str(Path(sysconfig.get_path("scripts")) / "ray"), "start", "--block", *role, "--disable-usage-stats"]
        command += [f"--node-ip-address={self._hosts.addresses[host]}", f"--num-cpus={self._cpus if host else 0}"]
        command += [f"--object-store-memory={256 * 2**20}"]
        if host and self._has_dashboard:  # with a disk of its own, as the files of submitted jobs are unpacked on each
            command = ["sh", "-c", f'mount -t tmpfs tmpfs {self._folder} && exec "$@"', "sh", *command]
        for _ in range(START_ATTEMPTS):
            log = self._folder / f"node-{host}-{time.monotonic_ns()}.log"
            if started(self._hosts.start(host, command, env=self.env, log=log), log):
                return
            self.kill_node(host)
            if GAVE_UP not in log.read_text():
                break
        raise RuntimeError(f"node {host} did not start: {log.read_text()[-3000:]}")

    def kill_node(self, host: int) -> None:
        """End all that a host runs, its raylet first."""
        self._hosts.end(host, first="raylet")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
