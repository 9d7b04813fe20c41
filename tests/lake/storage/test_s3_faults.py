"""What breaks between us and S3: connections that end in the middle of a body, and a server that goes away."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import use_server
from tests.forwarder import Forwarder, end
from tlray.demo.s3_server import S3Server
from tlray.errors import ObjectChangedError, StorageError
from tlray.lake.storage.open import open_store
from tlray.lake.storage.retry import Attempts


class CuttingProxy(Forwarder):
    """Passes bytes on to a server, and cuts the next `cuts` answers to GETs after `after_bytes`."""

    def __init__(self, port: int, after_bytes: int) -> None:
        super().__init__(socket.create_server(("127.0.0.1", 0)), ("127.0.0.1", port))
        self.cuts, self._after_bytes = 0, after_bytes

    def connect(self, client: socket.socket, server: socket.socket) -> None:
        is_get = threading.Event()
        threading.Thread(target=self._requests, args=(client, server, is_get), daemon=True).start()
        threading.Thread(target=self._answers, args=(server, client, is_get), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket, is_get: threading.Event) -> None:
        try:
            while block := client.recv(2**16):
                if block.startswith(b"GET "):
                    is_get.set()
                server.sendall(block)
        except OSError:
            pass
        end(client, server)

    def _answers(self, server: socket.socket, client: socket.socket, is_get: threading.Event) -> None:
        passed = 0
        try:
            while block := server.recv(2**16):
                client.sendall(block)
                passed += len(block)
                if is_get.is_set() and self.cuts and passed > self._after_bytes:
                    self.cuts -= 1
                    break
        except OSError:
            pass
        end(client, server)


@pytest.fixture
def proxy(s3_env: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[CuttingProxy]:
    with CuttingProxy(int(s3_env.endpoint.rpartition(":")[2]), after_bytes=300_000) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


class TestBrokenBodies:
    def test_a_read_is_repeated(self, proxy: CuttingProxy, s3_bucket: str) -> None:
        store, uri, data = open_store(s3_bucket), f"{s3_bucket}/x", os.urandom(2_000_000)
        store.write(uri, data)
        proxy.cuts = 2
        assert store.read(uri).data == data
        assert proxy.cuts == 0

    def test_a_read_that_always_breaks_is_a_storage_error(self, proxy: CuttingProxy, s3_bucket: str) -> None:
        store, uri = open_store(s3_bucket), f"{s3_bucket}/x"
        store.write(uri, os.urandom(2_000_000))
        proxy.cuts = 100
        with pytest.raises(StorageError, match=r"5 attempts in \d+ s failed"):
            store.read(uri)

    @pytest.mark.parametrize("way", ["open", "stream"])
    def test_a_reader_goes_on_where_it_broke(self, way: str, proxy: CuttingProxy, s3_bucket: str) -> None:
        store, uri, data = open_store(s3_bucket), f"{s3_bucket}/x", os.urandom(3_000_000)
        store.write(uri, data)
        proxy.cuts = 3
        with store.open(uri) if way == "open" else store.stream(uri)[0] as reader:
            blocks = [reader.read(100_000) for _ in range(31)]
        assert b"".join(blocks) == data
        assert proxy.cuts == 0

    def test_a_stream_does_not_go_on_in_another_object(self, proxy: CuttingProxy, s3_bucket: str) -> None:
        store, uri = open_store(s3_bucket), f"{s3_bucket}/x"
        store.write(uri, b"a" * 40_000_000)
        proxy.cuts = 1
        reader, _ = store.stream(uri)
        assert reader.read(1000) == b"a" * 1000
        store.write(uri, b"b" * 40_000_000)
        with reader, pytest.raises(ObjectChangedError):
            reader.read()


@pytest.mark.s3
class TestServer:
    @pytest.fixture
    def server(self, tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
        del s3_server  # only for its skip
        with S3Server(tmp_path / "server") as own:
            use_server(own, monkeypatch)
            yield own
            own.kill()  # its orderly end takes ten seconds

    def test_listens_on_loopback_only(self, server: S3Server) -> None:
        mine = {str(link.readlink()) for link in Path(f"/proc/{server.pid}/fd").iterdir() if link.is_symlink()}
        listening = []
        for table in ("tcp", "tcp6", "udp", "udp6"):
            for line in Path(f"/proc/{server.pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if f"socket:[{fields[9]}]" in mine and (fields[3] == "0A" or table.startswith("udp")):
                    listening.append(fields[1].partition(":")[0])
        assert len(listening) >= 8
        assert set(listening) == {"0100007F"}  # 127.0.0.1, in the byte order of /proc/net

    def test_killed_and_back_with_the_same_data(self, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        uri = server.make_bucket("kept") + "/x"
        store = open_store(uri)
        store.write(uri, b"still here")
        server.kill()
        assert server.pid is None
        pauses, pause = [], Attempts.pause

        def start_at_the_third(attempts: Attempts) -> bool:
            pauses.append(str(attempts))
            if len(pauses) == 3:
                server.start()
            return pause(attempts)

        monkeypatch.setattr(Attempts, "pause", start_at_the_third)
        assert store.read(uri).data == b"still here", "the client's retries outlast the restart"
        assert len(pauses) >= 3
