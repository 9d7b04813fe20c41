"""Connections that cannot be held for ever: limits on how many there are, and on how long each may wait for its client.

uvicorn limits what an application does, not what a client leaves undone: a request whose head never ends, an answer that nobody
reads. Such connections need no token, and each takes a file descriptor, of which a process has few.

Not for replicas under Ray Serve: there clients speak with Ray's own proxy.
"""

import asyncio
import resource
from collections.abc import Callable
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 16 * 2**10
"""The longest request line and headers, and of what is sent between pieces of a body: h11's limit, and that of many servers."""
MOST_CONNECTIONS = 1024
CHECK_SECONDS = 1.0


class Connection(HttpToolsProtocol):
    """A client's connection, closed when its request takes too long to arrive.

    Attributes:
        most_connections: one more, and the one that has waited longest for its client's next request is cut.
        head_seconds: for a whole head: from when the connection is there, or the last answer is done.
        send_seconds: for a client to read what was sent to it.
        on_cut: told why a connection was cut.
    """

    most_connections: ClassVar[int] = MOST_CONNECTIONS
    head_seconds: ClassVar[float] = 10.0
    send_seconds: ClassVar[float] = 30.0
    on_cut: ClassVar[Callable[[str], None]]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._head_bytes = self._loose_bytes = 0
        self._awaits_head_since: float | None = self.loop.time()
        self._unread_since: float | None = None
        self._check = self.loop.call_later(CHECK_SECONDS, self._look)
        if len(self.connections) > self.most_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop looking after a connection that has ended."""
        self._check.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless it is a head without end."""
        self._loose_bytes += len(data)
        super().data_received(data)
        if self._loose_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._cut("large head")

    # What the parser calls
    def on_message_begin(self) -> None:
        """Count the head of a new request."""
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count a piece of the request line."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header, or a trailer after a body."""
        self._count_head(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is here: from now on the application's own limits hold."""
        self._loose_bytes = 0
        self._awaits_head_since = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a request's body."""
        self._loose_bytes = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the end of a body that nobody wants."""
        super().on_response_complete()
        if self.cycle.response_complete:  # else the next request was here already
            self._awaits_head_since = self.loop.time()

    def _count_head(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > MAX_HEAD_BYTES:
            raise ValueError(f"a head of more than {MAX_HEAD_BYTES} bytes")  # the parser makes a 400 of it

    def _look(self) -> None:
        now = self.loop.time()
        if not self.transport.get_write_buffer_size():
            self._unread_since = None
        elif self._unread_since is None:
            self._unread_since = now
        if self._awaits_head_since is not None and now - self._awaits_head_since > self.head_seconds:
            self._cut("slow head")
        elif self._unread_since is not None and now - self._unread_since > self.send_seconds:
            self._cut("unread answer")
        else:
            self._check = self.loop.call_later(CHECK_SECONDS, self._look)

    def _make_room(self) -> None:
        waiting = [one for one in self.connections if isinstance(one, Connection) and one._awaits_head_since is not None]
        min(waiting, key=_since, default=self)._cut("too many connections")

    def _cut(self, reason: str) -> None:
        self._awaits_head_since = None  # it is no candidate any more
        type(self).on_cut(reason)
        self.transport.abort()


def _since(connection: Connection) -> float:
    return connection._awaits_head_since or 0.0


def limited(on_cut: Callable[[str], None], **limits: float) -> type[Connection]:
    """Connections of one server, no more than half of the files that this process may have open.

    Args:
        on_cut: told why a connection was cut.
        limits: attributes of `Connection`, in place of its own.
    """
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = MOST_CONNECTIONS if files == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, max(1, files // 2))
    attributes: dict[str, Any] = {"most_connections": most, "on_cut": staticmethod(on_cut), **limits}
    return type("LimitedConnection", (Connection,), attributes)
