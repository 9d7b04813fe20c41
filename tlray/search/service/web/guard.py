"""What stands between the network and the service: the token, limits on size, number and time, and counting.

Plain ASGI, so that a request is judged before its body is read.
"""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/", "/healthz", "/readyz", "/docs", "/openapi.json")
"""Need no token: the page without data, health, and the description of the interface. So does what is below /static/."""

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)
PAGE_POLICY = (b"content-security-policy", b"default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'")


class Metrics:
    """What Prometheus may ask for."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("tlray_requests", "Requests by route and status", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "tlray_request_seconds",
            "Time to answer",
            ["route"],
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20),
            registry=self.registry,
        )
        self.in_flight = Gauge("tlray_requests_in_flight", "Requests at work or waiting", registry=self.registry)
        self.version = Gauge("tlray_index_version", "Version of the index that answers", registry=self.registry)
        self.table_version = Gauge("tlray_table_version", "Version of the table that the index shows", registry=self.registry)
        self.rows = Gauge("tlray_index_rows", "Live rows", registry=self.registry)
        self.reloads = Counter("tlray_index_reloads", "Versions loaded while running", ["outcome"], registry=self.registry)


class Guard:
    """The outermost layer of the service.

    Args:
        app: what is inside.
        metrics: where requests are counted.
        token: None lets everybody in.
        hosts: names that the Host header may have, None for any: a page elsewhere that makes a browser talk to this
            machine under its own name (DNS rebinding) is refused.
        max_body_bytes: larger bodies: 413.
        max_concurrency: more requests at once: 429.
        timeout_seconds: of a whole request: 504.
    """

    def __init__(
        self,
        app: App,
        *,
        metrics: Metrics,
        token: str | None,
        hosts: frozenset[str] | None,
        max_body_bytes: int,
        max_concurrency: int,
        timeout_seconds: float,
    ) -> None:
        self._app, self._metrics, self._token, self._hosts = app, metrics, token, hosts
        self._max_body_bytes, self._max_concurrency, self._timeout_seconds = max_body_bytes, max_concurrency, timeout_seconds
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Judge a request, and hand on what passes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                policy = () if scope["path"] == "/docs" else (PAGE_POLICY,)  # its scripts come from elsewhere
                message["headers"] = [*message.get("headers", ()), *HEADERS, *policy]
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await _answer(sending, *refusal)
        else:
            await self._pass(scope, receive, sending, lambda: status != 0)
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(time.perf_counter() - began)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0].lower()
        if self._hosts is not None and host not in self._hosts:
            return 421, "this service does not go by that name"
        path = scope["path"]
        is_open = path in OPEN_PATHS or path.startswith("/static/")
        if self._token is not None and not is_open:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self._token.encode()):
                return 401, "a bearer token is needed: Authorization: Bearer <token>"
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared[:20]) > self._max_body_bytes:
            return 413, f"the body is over {self._max_body_bytes} bytes"
        if self._in_flight >= self._max_concurrency and not is_open:
            return 429, "too many requests at once; try again in a moment"
        return None

    async def _pass(self, scope: Scope, receive: Receive, send: Send, has_started: Callable[[], bool]) -> None:
        seen_bytes = 0

        async def receiving() -> Message:
            nonlocal seen_bytes
            message = await receive()
            seen_bytes += len(message.get("body", b""))
            # Chunked: nobody said how long it would be. The app hears that the client is gone.
            return message if seen_bytes <= self._max_body_bytes else {"type": "http.disconnect"}

        async def sending(message: Message) -> None:
            if seen_bytes <= self._max_body_bytes:
                await send(message)

        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._app(scope, receiving, sending)
        except TimeoutError:
            if not has_started():
                await _answer(send, 504, f"not done within {self._timeout_seconds:g} s")
        finally:
            if seen_bytes > self._max_body_bytes and not has_started():
                await _answer(send, 413, f"the body is over {self._max_body_bytes} bytes")
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)


async def _answer(send: Send, status: int, detail: str) -> None:
    extra = {401: [(b"www-authenticate", b"Bearer")], 429: [(b"retry-after", b"1")]}.get(status, [])
    body = b'{"detail": "%s"}' % detail.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
