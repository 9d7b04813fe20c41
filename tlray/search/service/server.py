"""The service in this process: uvicorn around the application, until a signal says to stop."""

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import uvicorn

from tlray.config import ServeConfig
from tlray.errors import ConfigError
from tlray.progress import say
from tlray.search.service.backend.service import Service
from tlray.search.service.web.app import guarded_app
from tlray.search.service.web.connections import limited
from tlray.search.service.web.guard import Guard

STOP_SECONDS = 30
"""How long requests under way are given when the server is told to stop: the grace period that Kubernetes has by default."""
BACKLOG = 128
"""Connections that wait to be accepted, and most that are accepted at once, before older ones can make room for them."""


class Server(uvicorn.Server):
    """uvicorn's server, with limits on connections.

    Unlike uvicorn's it does not raise the signal that stopped it once more: a command could not end with its result then.

    Args:
        app: the whole application.
        service: that it is of.
        limits: of connections, in place of the default ones; see `Connection`.
    """

    def __init__(self, app: Guard, service: Service, **limits: float) -> None:
        cut = service.metrics.cut
        config = uvicorn.Config(
            app,
            http=limited(lambda reason: cut.labels(reason).inc(), **limits),
            ws="none",
            log_level="error",  # not a line for each bad request
            access_log=False,
            timeout_graceful_shutdown=STOP_SECONDS,
            server_header=False,
            backlog=BACKLOG,
        )
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop the server at SIGINT and SIGTERM."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve_here(config: ServeConfig, token: str | None) -> dict[str, Any]:
    """Serve until a signal says to stop; requests under way are finished.

    Args:
        config: of the command.
        token: that requests must bring; None lets everybody in.

    Returns:
        The command's JSON object.

    Raises:
        ConfigError: the address or the index cannot be used.
        GoldenMismatchError: this machine embeds images otherwise than the table's.
    """
    service = Service(config)
    app = guarded_app(
        service,
        token=token,
        host=config.host,
        max_body_bytes=config.max_body_bytes,
        timeout_seconds=config.timeout_seconds,
    )
    pa.set_cpu_count(1)  # the index is read; from now on cores are for requests
    with _listening(config.host, config.port) as listener:
        listener.listen(BACKLOG)  # who reads the address below may come at once
        host, port = listener.getsockname()[:2]
        address = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
        card = service.searcher.card
        say(f"{card.rows} rows, version {card.version} of the index: {address} (interface: {address}docs)")
        Server(app, service).run(sockets=[listener])
    return {
        "index": service.index_uri,
        "version": service.searcher.card.version,
        "address": address,
        "requests": service.metrics.answered(),
    }


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ConfigError(f"cannot listen on {host} port {port}: {error}; give another --port") from error
        yield listener
