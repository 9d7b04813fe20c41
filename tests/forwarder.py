"""A TCP forwarder on this machine, for tests that do something to connections on their way."""

import contextlib
import socket
import threading
from typing import Self


class Forwarder:
    """Takes connections of a listening socket and hands each, with one of its own to an address, to `connect`.

    Attributes:
        endpoint: `http://<host>:<port>`.
    """

    def __init__(self, listener: socket.socket, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = listener
        self.endpoint = "http://{}:{}".format(*listener.getsockname())

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def connect(self, client: socket.socket, server: socket.socket) -> None:
        """Pass bytes between the two, in threads of its own."""
        raise NotImplementedError

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connect(client, socket.create_connection(self._target))


class PassingForwarder(Forwarder):
    """Passes bytes on as they come."""

    def connect(self, client: socket.socket, server: socket.socket) -> None:
        for one, other in ((client, server), (server, client)):
            threading.Thread(target=_pass, args=(one, other), daemon=True).start()


def _pass(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := one.recv(2**20):
            other.sendall(block)
    end(one, other)


def end(*connections: socket.socket) -> None:
    for connection in connections:
        with contextlib.suppress(OSError):  # a close alone would not wake a thread that waits in recv
            connection.shutdown(socket.SHUT_RDWR)
