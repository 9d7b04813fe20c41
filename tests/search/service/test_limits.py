"""What clients leave undone or overdo: it is cut off, and holds up nobody else."""

import http.client
import io
import json
import re
import resource
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.photos import photo
from tests.search.service.serving import TOKEN, Client, serving
from tlray.search.service.web.connections import MAX_HEAD_BYTES
from tlray.search.service.web.page_files import PAGE_FOLDER

HEAD = f"Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
CHUNKED = b"POST /api/search HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def connected(client: Client, data: bytes) -> socket.socket:
    """A connection on which `data` was sent."""
    connection = socket.create_connection(("127.0.0.1", client.port), timeout=300)
    connection.sendall(data)
    return connection


def answer_of(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_too_many_at_once(photos: Path) -> None:
    with serving(photos / "index", max_concurrency=2, images=False) as (client, service):
        refused, real = threading.Event(), service.info

        def held() -> object:
            refused.wait(300)
            return real()

        def ask(_: int) -> int:
            status = client("GET", "/api/index")[0]
            if status == 429:
                refused.set()
            return status

        service.info = held
        with ThreadPoolExecutor(3) as threads:
            assert sorted(threads.map(ask, range(3))) == [200, 200, 429]
        assert client("GET", "/api/index")[0] == 200
        status, data = client("POST", "/api/search/image", photo(1))
        assert status == 422 and b"without its network" in data


def test_a_request_that_timed_out_keeps_its_place_until_its_work_ends(photos: Path) -> None:
    with serving(photos / "index", timeout_seconds=1, max_concurrency=1, images=False) as (client, service):
        may_end, real = threading.Event(), service.info

        def held() -> object:
            may_end.wait(300)
            return real()

        service.info = held
        try:
            assert client("GET", "/api/index")[0] == 504
            assert client("GET", "/api/index")[0] == 429
            assert client("POST", "/api/search", {"queries": [{"id": 1}]})[0] == 429
            for path in ("/healthz", "/readyz", "/metrics", "/"):
                wait_until(lambda path=path: client("GET", path)[0] == 200)  # it has no more than that second either
            assert b"\ntlray_places_taken 1.0" in client("GET", "/metrics")[1]
        finally:
            may_end.set()
        wait_until(lambda: client("GET", "/api/index")[0] == 200)


def test_work_is_not_begun_for_clients_that_have_left(photos: Path) -> None:
    with serving(photos / "index", images=False) as (client, service):
        may_end, begun = threading.Event(), []

        def held() -> object:
            begun.append(1)
            return may_end.wait(300)

        service.info = held
        request = b"GET /api/index HTTP/1.1\r\n" + HEAD + b"\r\n"
        connections = [connected(client, request) for _ in range(20)]
        wait_until(lambda: service.workers.taken == 20)
        threads = len(begun)
        for connection in connections:
            connection.close()
        wait_until(lambda: service.workers.taken == threads)
        may_end.set()
        wait_until(lambda: service.workers.taken == 0)
        assert len(begun) == threads < 20


def test_heads_that_do_not_end_are_cut(photos: Path) -> None:
    with serving(photos / "index", {"head_seconds": 1.0}, images=False) as (client, _):
        silent, half = connected(client, b""), connected(client, b"GET / HTTP/1.1\r\nX: ")
        second = connected(client, b"GET /healthz HTTP/1.1\r\n" + HEAD + b"\r\nGET /healthz HTTP/1.1\r\nX: ")
        assert answer_of(silent) == answer_of(half) == b""
        assert answer_of(second).startswith(b"HTTP/1.1 200 OK")
        assert b'tlray_connections_cut_total{reason="slow head"} 3.0' in client("GET", "/metrics")[1]


@pytest.mark.parametrize(
    ("head", "tail"),
    [
        (b"GET /healthz HTTP/1.1\r\nX: ", b"x" * 2 * MAX_HEAD_BYTES),
        (b"GET /healthz HTTP/1.1\r\n", b"a: b\r\n" * MAX_HEAD_BYTES),
        (b"GET /healthz?", b"x" * 2 * MAX_HEAD_BYTES),
        (b"GET /healthz HTTP/1.1\r\n" + HEAD, b"X: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n"),
        (CHUNKED + b"1;", b"x" * 2 * MAX_HEAD_BYTES),
        (CHUNKED + b"0\r\n", b"a: b\r\n" * MAX_HEAD_BYTES),
    ],
    ids=("one header", "many headers", "target", "ended", "chunk extension", "trailers"),
)
def test_heads_that_are_too_large_are_refused(head: bytes, tail: bytes, photos: Path) -> None:
    with serving(photos / "index", images=False) as (client, _):
        began = time.monotonic()
        try:
            connection = connected(client, head)
            time.sleep(0.2)  # what comes in one piece with a head is read with it
            connection.sendall(tail)
            answer = answer_of(connection)
        except (ConnectionResetError, BrokenPipeError):
            answer = b""
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
        assert time.monotonic() - began < 60  # not the time limit of the request
        assert client("GET", "/healthz")[0] == 200


def test_there_is_room_for_one_more_connection(photos: Path) -> None:
    """However many connections wait for their clients: the oldest of them goes."""
    with serving(photos / "index", {"most_connections": 8, "head_seconds": 3600.0}, images=False) as (client, _):
        waiting = []
        for _ in range(30):
            waiting.append(connected(client, b"GET / HTTP/1.1\r\nX: "))
            assert client("GET", "/healthz")[0] == 200
        assert all(answer_of(connection) == b"" for connection in waiting[:20])
        waiting[-1].sendall(b"\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert answer_of(waiting[-1]).startswith(b"HTTP/1.1 200")


def test_an_answer_that_nobody_reads_is_cut(photos: Path) -> None:
    with serving(photos / "index", {"send_seconds": 1.0}, images=False, max_k=10_000, max_batch=1000) as (client, _):
        body = json.dumps({"queries": [{"id": number % 30} for number in range(1000)], "k": 29}).encode()
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", client.port))
        deaf.sendall(b"POST /api/search HTTP/1.1\r\n" + HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: b'{reason="unread answer"} 1.0' in client("GET", "/metrics")[1])
        deaf.close()


def test_a_body_that_does_not_arrive_is_cut_and_holds_no_place(photos: Path) -> None:
    with serving(photos / "index", timeout_seconds=3, max_concurrency=1, images=False) as (client, _):
        head = b"POST /api/search HTTP/1.1\r\n" + HEAD + b"Content-Length: 100\r\n\r\n{"
        slow = [connected(client, head) for _ in range(20)]
        assert client("POST", "/api/search", {"queries": [{"id": 1}]})[0] == 200
        for connection in slow:
            connection.settimeout(300)
            assert connection.recv(65536).startswith(b"HTTP/1.1 408")
            connection.close()


def test_large_bodies_are_bounded_together(photos: Path) -> None:
    with serving(photos / "index", max_body_bytes=1_000_000, images=False) as (client, _):
        head = b"POST /api/search/image HTTP/1.1\r\n" + HEAD + b"Content-Length: 1000000\r\n\r\n"
        held = [connected(client, head + b"x" * 950_000) for _ in range(4)]
        time.sleep(0.5)  # until they are read
        more = connected(client, head + b"x" * 950_000)
        assert more.recv(65536).startswith(b"HTTP/1.1 429")
        assert client("POST", "/api/search", {"queries": [{"id": 1}]})[0] == 200
        for connection in (*held, more):
            connection.close()
        wait_until(lambda: client("POST", "/api/search/image", b"x" * 900_000)[0] == 422)


@pytest.mark.parametrize(
    "body",
    [
        b'{"queries":[' + b"{}," * 300_000 + b"{}]}",
        b'{"queries":[' + b"0," * 500_000 + b"0]}",
        b'{"queries":[{"vector":[' + b'"a",' * 250_000 + b'"a"]}]}',
        b"{" + b",".join(b'"%x":0' % number for number in range(90_000)) + b"}",
        b'{"queries":' + b"[" * 1_000_000,
    ],
    ids=("objects", "numbers", "vector", "keys", "nested"),
)
def test_a_body_of_many_faults_costs_little(body: bytes, photos: Path) -> None:
    """To collect the faults of one body of 16 MiB took 7 GB and most of a minute."""
    with serving(photos / "index", images=False) as (client, _):
        assert client("POST", "/api/search", b"{}")[0] == 422
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        status, data = client("POST", "/api/search", body)
        assert status == 422 and len(data) < 10_000, data[:1000]
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # KiB


def test_a_search_by_json_has_a_limit_of_its_own(photos: Path) -> None:
    with serving(photos / "index", images=False, max_batch=2) as (client, service):
        assert service.max_search_bytes < 2 * 2**20
        assert client("POST", "/api/search", b" " * service.max_search_bytes + b"{}")[0] == 413
        full = {"queries": [{"vector": [-1.1754943508222875e-38] * (service.searcher.card.dimensions - 1) + [1]}] * 2}
        assert client("POST", "/api/search", full)[0] == 200


def test_the_page_loads_nothing_from_elsewhere_and_is_asked_for_once(photos: Path) -> None:
    with serving(photos / "index", images=False) as (client, _):
        for path in sorted(PAGE_FOLDER.iterdir()):
            text = path.read_text()
            assert not re.findall(r"""(?:src|href|from|import|url)\W{1,3}(?:https?:)?//[\w.]""", text), path
            address = {"index.html": "/", "docs.html": "/docs"}.get(path.name, f"/static/{path.name}")
            connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=300)
            connection.request("GET", address)
            answer = connection.getresponse()
            etag, policy = answer.getheader("etag"), answer.getheader("content-security-policy")
            assert (answer.status, answer.read()) == (200, path.read_bytes())
            assert policy is not None and policy.startswith("default-src 'self'") and "unsafe" not in policy
            connection.request("GET", address, headers={"If-None-Match": str(etag)})
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (304, b"")
            connection.close()


def test_a_stopped_service_ends_though_clients_hang_on(photos: Path) -> None:
    with serving(photos / "index", images=False) as (client, _):
        hanging = [connected(client, data) for data in (b"", b"GET / HT", b"GET /healthz HTTP/1.1\r\n" + HEAD + b"\r\n")]
        began = time.monotonic()
    assert time.monotonic() - began < 60
    for connection in hanging:
        connection.close()


def test_an_image_is_given_up_between_decoding_and_embedding(photos: Path) -> None:
    with serving(photos / "index", timeout_seconds=2) as (client, service):
        encoder = service.searcher.encoder()
        decoding, may_end, embedded = threading.Event(), threading.Event(), []
        decode, encode = encoder.decode, encoder.encode

        def held(data: bytes, *, max_pixels: int) -> object:
            decoding.set()
            may_end.wait(300)
            return decode(data, max_pixels=max_pixels)

        encoder.decode, encoder.encode = held, lambda pixels_BHWC: embedded.append(1) or encode(pixels_BHWC)
        assert client("POST", "/api/search/image", photo(1))[0] == 504
        assert decoding.is_set() and service.workers.taken == 1
        may_end.set()
        wait_until(lambda: service.workers.taken == 0)
        assert not embedded
        assert client("POST", "/api/search/image", photo(1))[0] == 200
        assert embedded == [1]


def test_an_image_that_is_too_large_for_the_body_limit_is_told(photos: Path) -> None:
    with serving(photos / "index", images=False, max_body_bytes=70_000) as (client, _):
        blocks = io.BytesIO(b"x" * 1_000_000)
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=300)
        connection.request(
            "POST", "/api/search/image", blocks, {"Authorization": f"Bearer {TOKEN}", "Content-Length": "1000000"}
        )
        assert connection.getresponse().status == 413  # it was read to its end, and thrown away
