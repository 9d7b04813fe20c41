"""Stores without what leases and commits rest on are refused before anything relies on them, by name."""

import errno
import fcntl
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import forget_aws
from tlray.errors import StorageError, StoreUnfitError
from tlray.lake.place.alias import point
from tlray.lake.place.lease import hold
from tlray.lake.storage.local import LocalStore
from tlray.lake.storage.open import open_store

HEADERS = ("If-None-Match", "If-Match")


class Server(http.server.ThreadingHTTPServer):
    """Keeps objects in memory; of conditional PUTs it keeps the conditions in `keeps`, does not know those in `unknown`, and
    passes over the others."""

    daemon_threads = True

    def __init__(self, keeps: tuple[str, ...] = (), unknown: tuple[str, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.keeps, self.unknown = keeps, unknown
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body, objects = self.rfile.read(int(self.headers["Content-Length"])), self.server.objects
        self.server.puts.append(self.path)
        given = [name for name in HEADERS if name in self.headers]
        if any(name in self.server.unknown for name in given):
            self.answer(501, b"<Error><Code>NotImplemented</Code><Message>A header you provided ...</Message></Error>")
        elif (
            ("If-None-Match" in given and "If-None-Match" in self.server.keeps and self.path in objects)
            or ("If-Match" in given and "If-Match" in self.server.keeps and self.path not in objects)
            or ("If-Match" in given and "If-Match" in self.server.keeps and self.headers["If-Match"] != '"etag"')
        ):
            self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        else:
            objects[self.path] = body
            self.answer(200)

    def do_GET(self) -> None:
        if self.path.startswith("/lake?"):
            return self.answer(200, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
        if self.path not in self.server.objects:
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        return self.answer(200, self.server.objects[self.path])

    do_HEAD = do_GET

    def do_DELETE(self) -> None:
        self.server.objects.pop(self.path, None)
        self.answer(204)

    def answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("ETag", '"etag"')
        self.send_header("Last-Modified", "Mon, 02 Nov 2026 10:00:00 GMT")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(**getattr(request, "param", {})) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        forget_aws(monkeypatch)
        endpoint = f"http://127.0.0.1:{server.server_port}"
        for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "REGION": "x", "ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield server
        server.shutdown()


@pytest.mark.parametrize("server", [{}, {"unknown": HEADERS}], indirect=True)
def test_a_lease_is_refused_at_once_and_leaves_nothing(server: Server) -> None:
    name = f"http://127.0.0.1:{server.server_port} \\(bucket lake\\) lacks conditional PUT.*If-None-Match"
    with pytest.raises(StoreUnfitError, match=name) as refused, hold("s3://lake/table", "run"):
        pass
    assert refused.value.exit_code == 2
    assert not server.objects and len(server.puts) == 2, "no request was repeated"
    assert all(path.startswith("/lake/table/_lease/_tlray-probe-") for path in server.puts)


@pytest.mark.parametrize("server", [{"keeps": ("If-None-Match",)}], indirect=True)
def test_each_condition_is_tried_once_and_refused_alone(server: Server) -> None:
    store = open_store("s3://lake/x")
    assert [store.write("s3://lake/a/x", b"1", if_absent=True) for _ in range(3)] == [True, False, False]
    assert sum("_tlray-probe-" in path for path in server.puts) == 2 and set(server.objects) == {"/lake/a/x"}
    with pytest.raises(StoreUnfitError, match="If-Match"):
        store.write("s3://lake/a/x", b"2", if_match="etag")
    assert server.objects == {"/lake/a/x": b"1"}


@pytest.mark.parametrize("server", [{"keeps": HEADERS}], indirect=True)
def test_a_store_that_keeps_them_is_used(server: Server) -> None:
    point("s3://lake/alias", "s3://lake/one")
    point("s3://lake/alias", "s3://lake/two")
    assert b"s3://lake/two" in server.objects["/lake/alias"] and len(server.objects) == 1


class TestFileSystems:
    def test_without_hard_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def link(*_: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")  # as FAT says it, link(2)

        monkeypatch.setattr(Path, "hardlink_to", link)
        with (
            pytest.raises(StoreUnfitError, match=f"{tmp_path}/t/_lease has no hard links"),
            hold(f"file://{tmp_path}/t", "run"),
        ):
            pass
        assert not list((tmp_path / "t" / "_lease").iterdir())

    def test_without_locks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def flock(*_: object) -> None:
            raise OSError(errno.ENOTSUP, "Operation not supported")

        point(f"file://{tmp_path}/alias", "file:///one")
        monkeypatch.setattr(fcntl, "flock", flock)
        with pytest.raises(StoreUnfitError, match=f"{tmp_path} has no file locks"):
            point(f"file://{tmp_path}/alias", "file:///two")

    @pytest.mark.parametrize("condition", [{}, {"if_absent": True}])
    def test_an_object_does_not_replace_a_folder(self, tmp_path: Path, condition: dict[str, bool]) -> None:
        (tmp_path / "folder").mkdir()
        with pytest.raises(StorageError, match="folder is a folder"):
            LocalStore().write(f"file://{tmp_path}/folder", b"", **condition)
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]
