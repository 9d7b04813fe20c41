"""`tlray serve`: the routes, the page, and the server around them."""

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

from tlray.config import ServeConfig
from tlray.errors import ConfigError
from tlray.lake.storage.uri import to_uri
from tlray.progress import say
from tlray.search.service.backend.service import Service
from tlray.search.service.web.app import guarded, make_app, read_token

STOP_SECONDS = 30
"""That requests under way are given when the server is told to stop: the grace period that Kubernetes has by default."""
BACKLOG = 2048
"""Connections that wait to be accepted, as uvicorn has it."""


class _Server(uvicorn.Server):
    """uvicorn's server, which raises the signal again once it has stopped; then a command could not end with its result."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(config: ServeConfig) -> dict[str, Any]:
    """Serve until a signal says to stop; requests under way are finished.

    Args:
        config: of the command.

    Returns:
        The command's JSON object.

    Raises:
        ConfigError: the token, the address or the index cannot be used.
        GoldenMismatchError: this machine embeds images otherwise than the table's.
    """
    token = read_token(config)
    if config.replicas > 1:
        return _serve_replicas(config)
    service = Service(config)
    app = guarded(make_app(service), service, config, token)
    server = _Server(
        uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=STOP_SECONDS, server_header=False)
    )
    with _listening(config) as listener:
        listener.listen(BACKLOG)  # who reads the address below may come at once
        host, port = listener.getsockname()[:2]
        address = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
        card = service.searcher.card
        say(f"{card.rows} rows, version {card.version} of the index: {address} (interface: {address}docs)")
        server.run(sockets=[listener])
    answered = sum(int(sample.value) for sample in _samples(service) if sample.name == "tlray_requests_total")
    return {"index": service.index_uri, "version": service.searcher.card.version, "address": address, "requests": answered}


def _serve_replicas(config: ServeConfig) -> dict[str, Any]:
    try:
        from tlray.search.service.replicas import serve_on_ray  # Ray Serve only where it is asked for
    except ImportError as error:
        raise ConfigError(f"replicas is {config.replicas}, but {error}; install tlray[serve], or leave --replicas 1") from error
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return serve_on_ray(config, to_uri(config.index), stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _samples(service: Service) -> Iterator[Any]:
    for metric in service.metrics.requests.collect():
        yield from metric.samples


@contextlib.contextmanager
def _listening(config: ServeConfig) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((config.host, config.port))
        except OSError as error:
            raise ConfigError(f"cannot listen on {config.host} port {config.port}: {error}; give another --port") from error
        yield listener
