"""Hostile clients of a service: what they leave undone, overdo and send wrongly, many at once.

Everything over plain sockets, so that heads can be cut and bodies can trickle. Bounded in number and time; on loopback only.
"""

import io
import json
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from tests.photos import photo

PATIENCE_SECONDS = 30.0
"""That a client of these waits for any answer."""
BOMB_SIDE = 7900
"""As many pixels as are decoded by default, of one bit each: a file of a few kilobytes."""


class Attacker:
    """Sends hostile requests, and counts what became of them.

    Args:
        port: of the service, on loopback.
        token: that it takes.
    """

    def __init__(self, port: int, token: str) -> None:
        self._port, self._token = port, token
        self._held: list[tuple[float, socket.socket]] = []
        self._lock = threading.Lock()
        bomb = io.BytesIO()
        Image.new("1", (BOMB_SIDE, BOMB_SIDE)).save(bomb, "PNG")
        self._bomb, self._photo = bomb.getvalue(), photo(5, (640, 480))
        self.kinds: dict[str, Callable[[random.Random], str]] = {
            "half head": self._half_head,
            "silent": self._silent,
            "endless head": self._endless_head,
            "half body": self._half_body,
            "trickled body": self._trickled_body,
            "huge body": self._huge_body,
            "huge declared": self._huge_declared,
            "bomb": self._image_bomb,
            "bad image": self._bad_image,
            "bad json": self._bad_json,
            "json of many faults": self._many_faults,
            "json of many numbers": self._many_numbers,
            "client leaves": self._client_leaves,
            "no http": self._no_http,
            "wrong token": self._wrong_token,
            "good": self._good,
        }

    def attack(self, count: int, at_once: int, seed: int = 0) -> Counter[str]:
        """Send requests of all kinds in random order; what became of each kind, as `kind: answer`."""
        rng = random.Random(seed)
        names = [list(self.kinds)[number % len(self.kinds)] for number in range(count)]
        rng.shuffle(names)

        def send(job: tuple[int, str]) -> str:
            number, name = job
            try:
                return f"{name}: {self.kinds[name](random.Random(number))}"
            except OSError as error:
                return f"{name}: {type(error).__name__}"
            finally:
                self._let_go(older_than_seconds=5)

        with ThreadPoolExecutor(at_once) as threads:
            answers = Counter(threads.map(send, enumerate(names)))
        self._let_go(older_than_seconds=0)
        return answers

    def _connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE_SECONDS)

    def _head(self, path: str, length: int | str, token: str | None = None) -> bytes:
        kind = "Transfer-Encoding: chunked" if length == "chunked" else f"Content-Length: {length}"
        return (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token or self._token}\r\n"
            f"Content-Type: application/json\r\n{kind}\r\n\r\n"
        ).encode()

    def _ask(self, data: bytes) -> str:
        with self._connect() as connection:
            connection.sendall(data)
            return status_of(connection)

    def _hold(self, connection: socket.socket) -> str:
        """Keep a connection open for some seconds, as those do who want to use them up."""
        with self._lock:
            self._held.append((time.monotonic(), connection))
        return "held"

    def _let_go(self, older_than_seconds: float) -> None:
        limit = time.monotonic() - older_than_seconds
        with self._lock:
            old = [connection for since, connection in self._held if since <= limit]
            self._held = [(since, connection) for since, connection in self._held if since > limit]
        for connection in old:
            connection.close()

    def _half_head(self, rng: random.Random) -> str:
        connection = self._connect()
        connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * rng.randrange(100))
        return self._hold(connection)

    def _silent(self, _: random.Random) -> str:
        return self._hold(self._connect())

    def _endless_head(self, rng: random.Random) -> str:
        line = rng.choice((b"a: b\r\n", b"x"))
        with self._connect() as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nX: y\r\n")
            for _ in range(50):
                connection.sendall(line * 2000)
            return status_of(connection)

    def _half_body(self, rng: random.Random) -> str:
        connection = self._connect()
        connection.sendall(self._head("/api/search", 1000) + b"{" * rng.randrange(900))
        return self._hold(connection)

    def _trickled_body(self, _: random.Random) -> str:
        with self._connect() as connection:
            connection.sendall(self._head("/api/search/image", "chunked"))
            for _ in range(20):
                connection.sendall(b"1\r\nx\r\n")
                time.sleep(0.1)
            return status_of(connection)

    def _huge_body(self, _: random.Random) -> str:
        with self._connect() as connection:
            connection.sendall(self._head("/api/search/image", 15 * 2**20))
            connection.sendall(b"x" * (15 * 2**20))
            return status_of(connection)

    def _huge_declared(self, rng: random.Random) -> str:
        return self._ask(self._head("/api/search", rng.choice((10**9, 10**18, "-1", "9" * 100))))

    def _image_bomb(self, _: random.Random) -> str:
        return self._ask(self._head("/api/search/image?k=1", len(self._bomb)) + self._bomb)

    def _bad_image(self, rng: random.Random) -> str:
        data = bytearray(self._photo)
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        data = data[: rng.randint(1, len(data))]
        return self._ask(self._head("/api/search/image?k=1", len(data)) + data)

    def _bad_json(self, rng: random.Random) -> str:
        good = json.dumps({"queries": [{"id": 1}], "k": 3, "labels": ["cat"], "prefixes": ["file://"]}).encode()
        data = bytearray(good)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return self._ask(self._head("/api/search", len(data)) + data)

    def _many_faults(self, rng: random.Random) -> str:
        item = rng.choice((b"{},", b"0,", b'{"id":-1},', b"[],"))
        data = b'{"queries":[' + item * (900_000 // len(item)) + b"0]}"
        return self._ask(self._head("/api/search", len(data)) + data)

    def _many_numbers(self, _: random.Random) -> str:
        data = b'{"queries":[{"vector":[' + b"1.5," * 200_000 + b"1]}]}"
        return self._ask(self._head("/api/search", len(data)) + data)

    def _client_leaves(self, _: random.Random) -> str:
        with self._connect() as connection:
            connection.sendall(self._head("/api/search/image?k=1", len(self._bomb)) + self._bomb)
        return "left"

    def _no_http(self, rng: random.Random) -> str:
        return self._ask(rng.randbytes(500) + b"\r\n\r\n")

    def _wrong_token(self, _: random.Random) -> str:
        return self._ask(self._head("/api/search", 20, "wrong") + b'{"queries":[{"id":1}')

    def _good(self, _: random.Random) -> str:
        data = b'{"queries":[{"id":1}],"k":3}'
        return self._ask(self._head("/api/search", len(data)) + data)


def status_of(connection: socket.socket) -> str:
    """The status of an answer, or what came in its place."""
    try:
        line = connection.recv(65536).split(b"\r\n", 1)[0].split()
    except TimeoutError:
        return "no answer"
    return line[1].decode() if len(line) > 1 else "closed"


class Watch:
    """The largest number of threads and the most memory of a process while it is attacked; read from /proc.

    Args:
        pid: of the process.
    """

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self.start_bytes = self.most_bytes = self.now_bytes
        self.start_threads = self.most_threads = self.now_threads
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def now_bytes(self) -> int:
        """Resident now."""
        return int(self._value("VmRSS")) * 1024

    @property
    def now_threads(self) -> int:
        """Threads now."""
        return int(self._value("Threads"))

    def _value(self, name: str) -> str:
        lines = self._status.read_text().splitlines()
        return next(line for line in lines if line.startswith(f"{name}:")).split()[1]

    def _look(self) -> None:
        while not self._stop.wait(0.05):
            self.most_bytes = max(self.most_bytes, self.now_bytes)
            self.most_threads = max(self.most_threads, self.now_threads)


def allowed_threads() -> int:
    """Most threads that a service may have."""
    return (os.cpu_count() or 1) + 8
