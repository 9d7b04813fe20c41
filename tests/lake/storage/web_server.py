"""A web server on loopback for tests: files with ETags, refusals with `Retry-After`, redirects, or as a test has it."""

import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


class WebServer:
    """Answers by path; counts what it was asked, and how many requests it had at once."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.files: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.special: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: Counter[str] = Counter()
        self.times: list[float] = []
        self.agents: set[str] = set()
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with outer._counted(self):
                    path = self.path.partition("?")[0]
                    if path in outer.special:
                        outer.special[path](self)
                    elif path in outer.files:
                        data, headers = outer.files[path]
                        answer(self, 200, data, **headers)
                    else:
                        answer(self, 404)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self.stores = f"{self.url}/ unencrypted private"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
            self.url = f"https://localhost:{self.port}"
            self.stores = f"{self.url}/ private"

    @contextmanager
    def _counted(self, handler: BaseHTTPRequestHandler) -> Iterator[None]:
        with self._lock:
            self.asked[f"{handler.command} {handler.path}"] += 1
            self.times.append(time.monotonic())
            self.agents.add(handler.headers["User-Agent"])
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def answer(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    """A whole answer; header names with `_` for `-`."""
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)
