"""An HTTP proxy on loopback in front of an S3 server, which does to requests what networks and busy servers do.

Requests pass on as they came, headers and all, so signatures stay valid: they are over the Host that the client named, which
is this proxy's. Each request is first shown to `decide`, which names a fault or None.
"""

import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

Fault = Literal[
    "slow_down",
    "expired",
    "skewed",
    "denied",
    "missing",
    "full",
    "reset",
    "lost_answer",
    "broken_upload",
    "truncated",
    "stall",
    "unavailable",
]
"""`reset` ends the connection before the server has seen the request, `lost_answer` when it has carried it out,
`broken_upload` when it has seen its headers, and `truncated` in the middle of the answer's body."""

ANSWERS: dict[str, tuple[int, str, str]] = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "unavailable": (500, "InternalError", "We encountered an internal error. Please try again."),
    "expired": (403, "ExpiredToken", "The provided token has expired."),
    "skewed": (403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large."),
    "denied": (403, "AccessDenied", "Access Denied."),
    "full": (507, "XMinioStorageFull", "Storage backend has reached its minimum free drive threshold."),
    "missing": (404, "NoSuchKey", "The specified key does not exist."),
}


@dataclass(frozen=True)
class Request:
    """What is known of a request before it passes.

    `key` is `<bucket>/<key>`, decoded; `agent` names the client, `access_key` who signed.
    """

    number: int
    method: str
    key: str
    query: str
    agent: str
    access_key: str


class FaultProxy:
    """A proxy as a context manager.

    Attributes:
        endpoint: `http://127.0.0.1:<port>`.
        decide: called for each request by many threads, one after the other.
        faults: how many there were of each.
        stall_seconds: how long a `stall` holds an answer back in the middle of its body.
    """

    def __init__(self, upstream: str, decide: Callable[[Request], Fault | None], *, stall_seconds: float = 1.0) -> None:
        self.decide, self.stall_seconds = decide, stall_seconds
        self.faults: Counter[str] = Counter()
        self.requests = 0
        self._upstream = urlsplit(upstream).netloc
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault_for(self, method: str, target: str, headers: Mapping[str, str]) -> Fault | None:
        path, _, query = target.partition("?")
        signed = headers.get("Authorization", "").partition("Credential=")[2]
        with self._lock:
            self.requests += 1
            key, agent = unquote(path.removeprefix("/")), headers.get("User-Agent", "")
            fault = self.decide(Request(self.requests, method, key, query, agent, signed.partition("/")[0]))
            if fault is not None:
                self.faults[fault] += 1
        return fault

    def ask(self, method: str, target: str, headers: list[tuple[str, str]], body: bytes | None) -> tuple[int, list, bytes]:
        """What the server answers: status, headers and body; nothing where None is given for a body that was announced.

        Raises:
            OSError, HTTPException: it is away.
        """
        connection = http.client.HTTPConnection(self._upstream, timeout=60)
        try:
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:
                connection.putheader(name, value)
            connection.endheaders(body or None)
            if body is None:
                time.sleep(0.2)  # as long as a server may take to open a file for it
                return 0, [], b""
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # of the 5 of socketserver a busy machine makes connections that are only tried again in seconds


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: FaultProxy

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.proxy.fault_for(self.command, self.path, self.headers)
        if fault in ("reset", "broken_upload"):
            if fault == "broken_upload":
                self.proxy.ask(self.command, self.path, self.headers.items(), None)
            self._reset()
        elif fault in ANSWERS:
            self._refuse(*ANSWERS[fault])
        else:
            try:
                answer = self.proxy.ask(self.command, self.path, self.headers.items(), body)
            except (OSError, http.client.HTTPException):
                self._reset()
            else:
                self._answer(*answer, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, fault: Fault | None) -> None:
        if fault == "lost_answer":
            self._reset()
            return
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(body)))
        self.send_header("Content-Length", length)
        self.end_headers()
        half = len(body) // 2
        self.wfile.write(body[:half])
        if fault == "truncated":
            self.close_connection = True  # an orderly end, as of a process that was told to stop
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault == "stall":
            self.wfile.flush()
            time.sleep(self.proxy.stall_seconds)
        self.wfile.write(body[half:])

    def _refuse(self, status: int, code: str, message: str) -> None:
        document = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        body = b"" if self.command == "HEAD" else document
        self.send_response_only(status)
        if code == "RequestTimeTooSkewed":  # what tells it of an answer to HEAD, which has no body
            self.send_header("Date", formatdate(time.time() - 3600, usegmt=True))
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST, not FIN
        self.connection.close()

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client gave up, or we reset it
            self.close_connection = True

    def finish(self) -> None:
        try:
            super().finish()
        except (OSError, ValueError):
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""
