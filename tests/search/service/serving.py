"""The service as tests use it: a real server on loopback, a client of plain HTTP, and an index of photographs."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.photos import RECIPE, result_of, tlray, write_photos
from tlray.config import ServeConfig
from tlray.search.service.backend.service import Service
from tlray.search.service.server import Server
from tlray.search.service.web.app import guarded_app

TOKEN = "correct-horse"


class Client:
    """Plain HTTP, one connection a request."""

    def __init__(self, port: int, token: str | None = TOKEN) -> None:
        self.port, self.token = port, token

    def __call__(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        given = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if isinstance(body, (dict, list)):
            body, given["Content-Type"] = json.dumps(body).encode(), "application/json"
        try:
            connection.request(method, path, body, given | headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def json(self, method: str, path: str, body: object = None) -> dict:
        status, data = self(method, path, body)
        assert status == 200, (status, data)
        return json.loads(data)


@contextmanager
def serving(
    index: Path, connection_limits: dict[str, float] | None = None, /, **changes: object
) -> Iterator[tuple[Client, Service]]:
    """A server in a thread of this process, which waits for a slow machine as well."""
    config = ServeConfig(**({"index": str(index), "reload_seconds": 0.2, "timeout_seconds": 300} | changes))
    service = Service(config)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    app = guarded_app(
        service,
        token=TOKEN,
        host=config.host,
        max_body_bytes=config.max_body_bytes,
        timeout_seconds=config.timeout_seconds,
    )
    server = Server(app, service, **(connection_limits or {}))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Client(listener.getsockname()[1]), service
    finally:
        server.should_exit = True
        thread.join(300)
        listener.close()


def index_of_photos(folder: Path, count: int) -> Path:
    """An index of photographs of cats and dogs, which are below `folder`."""
    write_photos(folder / "photos", count)
    (folder / "photos" / "secret.txt").write_text("not an image")
    source = ["--source.uri", folder / "photos", "--source.labels", "folder", "--source.include", "**/*.jpg"]
    result_of(tlray("extract", "--local", *source, *RECIPE, "--table", folder / "table"))
    result_of(tlray("index", "--table", folder / "table", "--out", folder / "index"))
    return folder / "index"
