"""Who may ask."""

import socket
from pathlib import Path

import pytest

from tests.photos import error_of, tlray
from tests.search.service.serving import TOKEN, Client, serving
from tlray.search.service.web.access import Access, host_of, is_loopback, read_token


def test_without_the_token_nothing_is_told(photos: Path) -> None:
    with serving(photos / "index", images=False) as (client, _):
        for token in (None, "", "wrong", TOKEN + "x", TOKEN[:-1]):
            for method, path in (
                ("GET", "/api/index"),
                ("POST", "/api/search"),
                ("GET", "/api/thumbnail/1"),
                ("GET", "/metrics"),
                ("GET", "/static"),
                ("GET", "//"),
            ):
                status, data = Client(client.port, token)(method, path)
                assert status == 401 and b"photos" not in data
        assert client("GET", "/api/index", Host="evil.example")[0] == 421
        for scheme in ("Bearer", "bearer", "BEARER", "bearer  "):
            assert Client(client.port, None)("GET", "/api/index", Authorization=f"{scheme} {TOKEN}")[0] == 200, scheme
        for scheme in ("Basic", "Bearer,", ""):
            assert Client(client.port, None)("GET", "/api/index", Authorization=f"{scheme} {TOKEN}")[0] == 401, scheme
        for host in ("[::1]", "[::1]:8080", "127.0.0.1", "LOCALHOST:1", "localhost.", "127.1.2.3", "[0:0:0:0:0:0:0:1]:80"):
            assert client("GET", "/api/index", Host=host)[0] == 200, host


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (b"[::1]", "::1"),
        (b"[::1]:8080", "::1"),
        (b"[::1", "::1"),
        (b"Example.org:80", "example.org"),
        (b"example.org.", "example.org"),
        (b"", ""),
        (b":80", ""),
        (b"\xff:1", "\xff"),
    ],
)
def test_the_name_in_a_host_header(header: bytes, name: str) -> None:
    assert host_of(header) == name


@pytest.mark.parametrize("host", ["127.0.0.1.evil.example", "evil.example", "::1.evil.example", "", "10.0.0.1", "[::2]"])
def test_only_names_of_this_machine_reach_a_service_on_loopback(host: str) -> None:
    headers = {b"host": host.encode()}
    assert Access(None, "127.0.0.1").refusal(headers, needs_token=False) is not None
    assert Access(None, "localhost").refusal({b"host": b"[::1]:1"}, needs_token=True) is None
    assert Access(None, "0.0.0.0").refusal(headers, needs_token=True) is None


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost", "127.8.8.8", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "", "::ffff:10.0.0.1", "localhost.evil")))


def test_others_than_this_machine_need_a_token(photos: Path, tmp_path: Path) -> None:
    index = ["serve", "--index", photos / "index", "--no-images"]
    assert "--token-file" in error_of(tlray(*index, "--host", "0.0.0.0"))
    (tmp_path / "empty").write_text("\n")
    assert "no token" in error_of(tlray(*index, "--token-file", tmp_path / "empty"))
    assert "cannot read" in error_of(tlray(*index, "--token-file", tmp_path / "none"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "cannot listen" in error_of(tlray(*index, "--port", str(taken.getsockname()[1])))
    assert read_token(None, "127.0.0.1") is None
