"""Sources on the web, from a real server on loopback: manners, limits, redirects, and which addresses are asked."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import polars as pl
import pytest
import trustme

from tests.lake.storage.web_server import WebServer, answer
from tests.photos import RECIPE, error_of, photo, result_of, tlray
from tlray.config.sections.stores import store_access, stores_in_use, use_stores
from tlray.errors import AccessError, ObjectChangedError, ObjectNotFoundError, ObjectTooLargeError, SourceError, StorageError
from tlray.lake.storage.open import open_store
from tlray.lake.storage.remote import hosts, requests, web
from tlray.lake.storage.remote.connections import is_public
from tlray.lake.storage.uri import to_uri


@contextmanager
def told(*texts: str) -> Iterator[None]:
    """What a process is told in the place of what it was told before."""
    before = stores_in_use()
    use_stores([store_access(text) for text in texts])
    try:
        yield
    finally:
        use_stores(before)


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as server, told(server.stores):
        yield server


def test_bytes_and_version(server: WebServer) -> None:
    server.files["/a.jpg"] = b"abc", {"ETag": '"v1"', "Last-Modified": "Sat, 01 Aug 2026 00:00:00 GMT"}
    server.files["/b.jpg"] = b"abc", {"Last-Modified": "Sat, 01 Aug 2026 00:00:00 GMT"}
    server.files["/c.jpg"] = b"abc", {}
    store = open_store(server.url)
    assert store.read(f"{server.url}/a.jpg") == web.Blob(b"abc", "v1")
    assert store.read(f"{server.url}/b.jpg").etag == "modified Sat, 01 Aug 2026 00:00:00 GMT"
    # sha256 of "abc" (FIPS 180-2, appendix B.1)
    assert store.read(f"{server.url}/c.jpg").etag.startswith("sha256-ba7816bf8f01cfea414140de5dae2223")
    info = store.stat(f"{server.url}/a.jpg")
    assert info is not None and (info.etag, info.size_bytes, info.modified_seconds) == ("v1", 3, 1785542400.0)
    assert store.stat(f"{server.url}/none.jpg") is None
    with store.open(f"{server.url}/a.jpg") as file:
        assert (file.seek(1), file.read()) == (1, b"bc")
    with pytest.raises(ObjectChangedError, match="v1"):
        store.read(f"{server.url}/a.jpg", if_match="v0")
    with pytest.raises(ObjectNotFoundError):
        store.read(f"{server.url}/none.jpg")
    assert next(iter(store.list(f"{server.url}/a.jpg")))["uri"].to_pylist() == [f"{server.url}/a.jpg"]
    assert all(agent.startswith("tlray/") for agent in server.agents)


def test_a_server_that_refuses_head_is_asked_by_get(server: WebServer) -> None:
    def no_head(handler: BaseHTTPRequestHandler) -> None:
        answer(handler, *((405, b"") if handler.command == "HEAD" else (200, b"abcd")), ETag='"x"')

    server.special["/a.jpg"] = no_head
    info = open_store(server.url).stat(f"{server.url}/a.jpg")
    assert info is not None and (info.etag, info.size_bytes) == ("x", 4)


def test_too_large_is_refused_before_and_while_it_is_read(server: WebServer) -> None:
    server.files["/large"] = b"x" * 2_000_000, {}
    sent = []

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        while True:  # until the connection is closed
            handler.wfile.write(b"x" * 65536)
            sent.append(65536)

    server.special["/endless"] = endless
    store = open_store(server.url)
    with pytest.raises(ObjectTooLargeError, match="has 2000000 bytes"):
        store.read(f"{server.url}/large", max_bytes=1_000_000)
    with pytest.raises(ObjectTooLargeError, match="more bytes than the limit of 1000000"):
        store.read(f"{server.url}/endless", max_bytes=1_000_000)
    assert sum(sent) < 50_000_000  # what the buffers of the system hold comes on top
    assert store.read(f"{server.url}/large", max_bytes=2_000_000).data == b"x" * 2_000_000


def test_a_body_that_drips_is_given_up(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "GRACE_SECONDS", 0.5)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        while True:
            handler.wfile.write(b"x")
            time.sleep(0.05)

    server.special["/drip"] = drip
    with pytest.raises(StorageError, match="too slow"):
        open_store(server.url).read(f"{server.url}/drip")
    assert server.asked["GET /drip"] == 1


def test_a_body_that_breaks_off_is_asked_for_again(server: WebServer) -> None:
    def breaks(handler: BaseHTTPRequestHandler) -> None:
        if server.asked["GET /a"] < 3:
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b"short")
            handler.close_connection = True
        else:
            answer(handler, 200, b"whole")

    server.special["/a"] = breaks
    assert open_store(server.url).read(f"{server.url}/a").data == b"whole"
    assert server.asked["GET /a"] == 3


def test_retry_after_is_waited_out(server: WebServer) -> None:
    def busy(handler: BaseHTTPRequestHandler) -> None:
        if server.asked["GET /a"] == 1:
            answer(handler, 429, Retry_After="1")
        else:
            answer(handler, 200, b"now")

    server.special["/a"] = busy
    assert open_store(server.url).read(f"{server.url}/a").data == b"now"
    assert len(server.times) == 2 and server.times[1] - server.times[0] >= 1


def test_a_host_that_asks_for_an_hour_is_left_alone(server: WebServer) -> None:
    server.special["/a"] = lambda handler: answer(handler, 503, Retry_After="3600")
    for name in ("a", "b"):
        with pytest.raises(StorageError, match="left alone for 3"):
            open_store(server.url).read(f"{server.url}/{name}")
    assert server.asked == {"GET /a": 1}


def test_errors_of_the_server_are_repeated_and_end(server: WebServer) -> None:
    server.special["/a"] = lambda handler: answer(handler, 500)
    with pytest.raises(StorageError, match=r"4 attempts.*HTTP 500"):
        open_store(server.url).read(f"{server.url}/a")
    assert server.asked["GET /a"] == requests.BROKEN_ATTEMPTS


def test_so_many_at_once_to_a_host(server: WebServer) -> None:
    gate = threading.Barrier(3)

    def slow(handler: BaseHTTPRequestHandler) -> None:
        gate.wait(60)  # passes once three are here together
        answer(handler, 200, b"x")

    server.special["/a"] = slow
    with told(f"{server.stores} connections=3"):
        threads = [threading.Thread(target=open_store(server.url).read, args=(f"{server.url}/a",)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert server.asked["GET /a"] == 12
    assert server.most_at_once == 3


def test_a_host_without_a_server_fails_soon_and_is_then_not_asked(server: WebServer) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with told(f"{url} unencrypted private"):
        with pytest.raises(StorageError, match="4 attempts"):
            open_store(url).read(f"{url}/a")
        with pytest.raises(StorageError, match="not asked"):
            open_store(url).read(f"{url}/b")


def test_redirects_are_followed_and_judged_anew(server: WebServer) -> None:
    server.files["/a"] = b"abc", {"ETag": '"v1"'}
    server.special["/old"] = lambda handler: answer(handler, 301, Location="/a")
    server.special["/circle"] = lambda handler: answer(handler, 302, Location="/circle")
    server.special["/file"] = lambda handler: answer(handler, 302, Location="file:///etc/passwd")
    store = open_store(server.url)
    assert store.read(f"{server.url}/old").data == b"abc"
    with pytest.raises(StorageError, match="redirects more than"):
        store.read(f"{server.url}/circle")
    with pytest.raises(AccessError, match=r"/file redirects, .*expected https"):
        store.read(f"{server.url}/file")
    with pytest.raises(AccessError, match="expected https") as caught, requests.answer_to("GET", "file:///etc/passwd"):
        pass
    assert "redirects" not in str(caught.value)
    with WebServer() as inner:  # on loopback too, and nobody allowed it
        inner.files["/secret"] = b"secret", {}
        server.special["/out"] = lambda handler: answer(handler, 302, Location=f"{inner.url}/secret")
        with told(server.stores, "http:// unencrypted"), pytest.raises(AccessError, match="no public address"):
            store.read(f"{server.url}/out")
        with pytest.raises(AccessError, match="not encrypted"):
            store.read(f"{server.url}/out")
        assert not inner.asked
        with told(server.stores, inner.stores):
            assert store.read(f"{server.url}/out").data == b"secret"


def test_a_name_is_judged_by_what_the_connection_goes_to(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is public when it is first looked up and loopback afterwards leads to no second look-up."""
    real, looked_up = socket.getaddrinfo, []

    def rebinding(host: str, port: int, *arguments: object, **more: object) -> list:
        if host != "rebind.example":
            return real(host, port, *arguments, **more)
        looked_up.append(host)
        first = "203.0.114.1" if len(looked_up) % 2 else "127.0.0.1"
        return real(first, port, *arguments, **more)

    connected = []

    def connect(address: tuple[str, int], *_: object) -> socket.socket:
        connected.append(address[0])
        raise OSError("not from here")

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr("tlray.lake.storage.remote.connections.create_connection", connect)
    port = server.url.rpartition(":")[2]
    url = f"http://rebind.example:{port}/a"
    with told("http:// unencrypted"), pytest.raises(AccessError, match=r"rebind\.example is 127\.0\.0\.1"):
        open_store(url).read(url)
    assert connected == ["203.0.114.1"]
    assert not server.asked


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *((address, True) for address in ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8")),
        *(
            (address, False)
            for address in (
                "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
                "255.255.255.255", "::1", "::", "fe80::1%eth0", "fd00::1", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1",
                "2002:7f00:1::",
            )
        ),
    ],
)  # fmt: skip
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize("url", ["http://2130706433/a", "http://0x7f.1/a", "http://localhost/a", "http://[::1]/a"])
def test_other_spellings_of_loopback_are_refused(url: str) -> None:
    with told("http:// unencrypted"), pytest.raises(AccessError, match="no public address"):
        open_store(url).read(url)


def test_certificates_are_checked_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    with WebServer(tls) as server, told(server.stores, f"https://127.0.0.1:{server.port}/ private"):
        server.files["/a"] = b"abc", {}
        with pytest.raises(AccessError, match="not one that this machine trusts"):
            open_store(server.url).read(f"{server.url}/a")
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))  # of OpenSSL
        assert open_store(server.url).read(f"{server.url}/a").data == b"abc"
        with pytest.raises(AccessError, match="not one that this machine trusts"):
            open_store(server.url).read(f"https://127.0.0.1:{server.port}/a")
        with told("s3://none/ anonymous"), pytest.raises(AccessError, match=rf'"https://localhost:{server.port}/ private"'):
            open_store(server.url).read(f"{server.url}/a")
        assert server.asked == {"GET /a": 1}


def test_what_is_no_address_of_the_web() -> None:
    with pytest.raises(SourceError, match="user or password") as caught:
        to_uri("https://me:secret@host/x")
    assert "secret" not in str(caught.value)
    with pytest.raises(SourceError, match="no host"):
        to_uri("https:///x")


def test_a_list_of_urls_becomes_a_table(server: WebServer, tmp_path: Path) -> None:
    for number in range(6):
        server.files[f"/{number}.jpg"] = photo(number), {"ETag": f'"v{number}"'}
    server.files["/page.jpg"] = b"<html>sign in</html>", {}
    server.special["/broken.jpg"] = lambda handler: answer(handler, 500)
    server.special["/forbidden.jpg"] = lambda handler: answer(handler, 403)
    local = tmp_path / "local.jpg"
    local.write_bytes(photo(3))
    names = [*range(6), "page", "broken", "forbidden", "gone"]
    urls = [f"{server.url}/{name}.jpg" for name in names]
    lines = [*urls, "http://unallowed.example/a.jpg", str(local)]
    (tmp_path / "list.csv").write_text("\n".join(["url", *lines]))
    table = str(tmp_path / "table")
    arguments = ["extract", "--source.uri", str(tmp_path / "list.csv"), "--table", table, *RECIPE, "--local"]
    result = result_of(tlray(*arguments, "--stores", server.stores, "--max-failed-fraction", "0.9"))
    assert (result["ok"], result["failed"]) == (7, 5)
    rows = {row["uri"]: row for row in pl.read_delta(table).to_dicts()}
    assert {uri.rpartition("/")[2]: row["error"] for uri, row in rows.items() if row["error"]} == {
        "page.jpg": "not_an_image", "broken.jpg": "fetch_failed", "forbidden.jpg": "fetch_failed", "gone.jpg": "not_found",
        "a.jpg": "fetch_failed",
    }  # fmt: skip
    assert [rows[url]["etag"] for url in urls[:6]] == [f"v{number}" for number in range(6)]
    assert rows[urls[3]]["embedding"] == rows[f"file://{local}"]["embedding"]


def test_a_manifest_on_the_web(server: WebServer, tmp_path: Path) -> None:
    for number in range(3):
        server.files[f"/photos/{number}.jpg"] = photo(number), {}
    server.files["/photos/list.csv"] = b"uri\n0.jpg\n1.jpg\n2.jpg\n", {}
    table = str(tmp_path / "table")
    arguments = ["--table", table, *RECIPE, "--local", "--stores", server.stores]
    assert result_of(tlray("extract", "--source.uri", f"{server.url}/photos/list.csv", *arguments))["ok"] == 3
    assert sorted(pl.read_delta(table)["uri"]) == [f"{server.url}/photos/{number}.jpg" for number in range(3)]
    assert "which the web cannot list" in error_of(tlray("extract", "--source.uri", f"{server.url}/photos/", *arguments))


def test_nothing_is_written_to_the_web(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(photo(1))
    said = error_of(tlray("extract", str(tmp_path), "https://example.org/table", *RECIPE, "--local"))
    assert "only read" in said and "s3://bucket/key or a local path" in said


def test_retry_after_that_is_no_time_is_left_aside() -> None:
    host = hosts.Host()
    for text in (None, "soon", "", "1e999", "Wed, 99 Foo"):
        host.rest(text)
    host.wait("https://host/")
