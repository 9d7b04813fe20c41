"""What stands between the network and the service: access, limits on size, number and time, and counting.

Plain ASGI, so that a request is judged before its body is read, and its body is here before any thread works for it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, MutableMapping
from typing import Any

from tlray.search.service.backend.metrics import Metrics
from tlray.search.service.backend.workers import Workers
from tlray.search.service.web.access import Access, Refusal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]

SMALL_BODY_BYTES = 64 * 2**10
"""Bodies that are always taken: a server has read as much before it asks anybody."""
LARGE_BODIES = 4
"""Times the largest body, what bodies may take together; beyond it only small ones are read."""
CLIENT_LEFT = 499
"""What is counted where the client was gone before its answer, as nginx calls it; nobody sees it."""

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"),
)
REFUSAL_HEADERS = {401: ((b"www-authenticate", b"Bearer"),), 429: ((b"retry-after", b"1"),)}


class Guard:
    """The outermost layer of the service.

    Args:
        app: what is inside.
        access: who may ask.
        metrics: where requests are counted.
        workers: whose places searches need; while all are taken: 429.
        open_paths: need no token: the page without data, health, and the description of the interface.
        max_body_bytes: larger bodies: 413.
        timeout_seconds: a body that has not arrived by then: 408; a request that is not answered by then: 504.
    """

    def __init__(
        self,
        app: App,
        *,
        access: Access,
        metrics: Metrics,
        workers: Workers,
        open_paths: Collection[str],
        max_body_bytes: int,
        timeout_seconds: float,
    ) -> None:
        self._app, self._access, self._metrics, self._workers = app, access, metrics, workers
        self._open_paths = frozenset(open_paths)
        self._max_body_bytes, self._timeout_seconds = max_body_bytes, timeout_seconds
        self._bodies_bytes = self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Judge a request, and hand on what passes."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._counted(_Exchange(scope, receive, send))

    async def _counted(self, exchange: "_Exchange") -> None:
        began = time.perf_counter()
        self._count_in_flight(1)
        try:
            refusal = self._refusal(exchange.scope) or await self._answer(exchange)
            if refusal is not None and not exchange.has_started:
                await exchange.refuse(*refusal)
        finally:
            self._count_in_flight(-1)
            route = getattr(exchange.scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(exchange.status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - began)

    def _count_in_flight(self, change: int) -> None:
        self._in_flight += change
        self._metrics.in_flight.set(self._in_flight)
        self._metrics.places.set(self._workers.taken)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        is_open = scope["path"] in self._open_paths
        refusal = self._access.refusal(headers, needs_token=not is_open)
        if refusal is not None:
            return refusal
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared[:20]) > self._max_body_bytes:
            return self._too_large()
        if self._workers.is_full and scope["method"] == "POST":  # before its body is read; others are refused if they must
            return 429, "too many requests at once; try again in a moment"
        return None

    async def _answer(self, exchange: "_Exchange") -> Refusal | None:
        """Read the body and have the request answered, within the time limit; or say why not."""
        body = _Body()
        try:
            async with asyncio.timeout(self._timeout_seconds) as deadline:
                refusal = await self._read(body, exchange)
                if refusal is None and not exchange.client_left:
                    await self._work(exchange, body)
                return refusal
        except TimeoutError:
            if not deadline.expired():
                raise
            if body.is_complete:
                return 504, f"not done within {self._timeout_seconds:g} s"
            return 408, f"the request's body did not arrive within {self._timeout_seconds:g} s"
        finally:
            self._bodies_bytes -= body.size_bytes

    async def _read(self, body: "_Body", exchange: "_Exchange") -> Refusal | None:
        while not body.is_complete:
            message = await exchange.receive()
            if message["type"] == "http.disconnect":
                exchange.client_left = True
                return None
            self._bodies_bytes += body.add(message)
            if body.size_bytes > self._max_body_bytes:
                return self._too_large()
            if body.size_bytes > SMALL_BODY_BYTES and self._bodies_bytes > LARGE_BODIES * self._max_body_bytes:
                return 429, "too many large requests at once; try again in a moment"
        return None

    def _too_large(self) -> Refusal:
        return 413, f"the body is over {self._max_body_bytes} bytes"

    async def _work(self, exchange: "_Exchange", body: "_Body") -> None:
        """Have the app answer; given up when the client leaves."""
        left = asyncio.create_task(exchange.wait_until_client_leaves())
        app = asyncio.create_task(self._app(exchange.scope, body.replay(left), exchange.send))
        try:
            await asyncio.wait((app, left), return_when=asyncio.FIRST_COMPLETED)
            if app.done():
                app.result()
        finally:
            for task in (app, left):
                task.cancel()
            await asyncio.gather(app, left, return_exceptions=True)


class _Body:
    """A request's body as it arrives."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.size_bytes = 0
        self.is_complete = False

    def add(self, message: Message) -> int:
        """Take a message of the body; its size."""
        piece: bytes = message.get("body", b"")
        self._pieces.append(piece)
        self.size_bytes += len(piece)
        self.is_complete = not message.get("more_body", False)
        return len(piece)

    def replay(self, left: "asyncio.Task[None]") -> Receive:
        """What an app receives: the whole body at once, and then only that the client has left."""
        whole = b"".join(self._pieces)
        self._pieces.clear()
        messages: list[Message] = [{"type": "http.request", "body": whole, "more_body": False}]

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await asyncio.shield(left)
            return {"type": "http.disconnect"}

        return receive


class _Exchange:
    """One request and the answer to it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self.receive, self._send = scope, receive, send
        self.status = CLIENT_LEFT
        self.has_started = self.client_left = False

    async def send(self, message: Message) -> None:
        """Pass a message of the answer on, with our headers."""
        if message["type"] == "http.response.start":
            self.has_started, self.status = True, message["status"]
            message["headers"] = [*message.get("headers", ()), *HEADERS]
        await self._send(message)

    async def refuse(self, status: int, detail: str) -> None:
        """Answer a request with an error."""
        body = b'{"detail": "%s"}' % detail.encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers += REFUSAL_HEADERS.get(status, ())
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    async def wait_until_client_leaves(self) -> None:
        """Return when the connection is closed."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.client_left = True
