"""`az://` against Azurite, Microsoft's own emulator of Azure Storage: `npm install --global azurite`; skipped without it."""

import base64
import hashlib
import hmac
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import obstore
import polars as pl
import pytest
import urllib3
from obstore.store import AzureStore

from tests.photos import RECIPE, photo, result_of, tlray
from tests.ray_cluster import free_ports
from tlray.errors import AccessError, ObjectChangedError, ObjectNotFoundError, ObjectTooLargeError, SourceError
from tlray.lake.storage.open import open_store

ACCOUNT = "devstoreaccount1"
KEY = base64.b64encode(b"a key of these tests alone").decode()
PATIENCE_SECONDS = 120
FILES = {"run/a b/ü.jpg": b"small", "run/large.bin": bytes(range(256)) * 20_000, "running/y.jpg": b"y"}


def signed(method: str, path: str, query: dict[str, str]) -> dict[str, str]:
    """Headers of a request by the account's key.

    https://learn.microsoft.com/en-us/rest/api/storageservices/authorize-with-shared-key
    """
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    named = "".join(f"{name}:{value}\n" for name, value in sorted(headers.items()))
    resource = f"/{ACCOUNT}{path}" + "".join(f"\n{name}:{value}" for name, value in sorted(query.items()))
    text = method + "\n" * 12 + named + resource
    signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)).decode()
    return headers | {"Authorization": f"SharedKey {ACCOUNT}:{signature}"}


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the account, in which there is the container `photos`."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("no azurite-blob on this machine: npm install --global azurite")
    folder, (port,) = tmp_path_factory.mktemp("azurite"), free_ports(1)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", folder, "--disableTelemetry"],
            env={"PATH": f"{Path(program).parent}:/usr/local/bin:/usr/bin:/bin", "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        place, query = f"/{ACCOUNT}/photos", {"restype": "container"}
        headers = signed("PUT", place, query)
        answer = urllib3.request("PUT", f"http://127.0.0.1:{port}{place}?restype=container", headers=headers)
        assert answer.status == 201, answer.data
        yield f"http://127.0.0.1:{port}/{ACCOUNT}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def container(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> AzureStore:
    """The container, in the environment that a user would have."""
    settings = {
        "ACCOUNT_NAME": ACCOUNT,
        "ACCOUNT_KEY": KEY,
        "ENDPOINT": endpoint,
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
    return AzureStore("photos")


def test_blobs(container: AzureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store("az://photos")
    for path, data in FILES.items():
        obstore.put(container, path, data)
    listed = {row["uri"]: row for page in store.list("az://photos/run") for row in page.to_pylist()}
    assert {uri: row["size_bytes"] for uri, row in listed.items()} == {
        f"az://photos/{path}": len(data) for path, data in FILES.items() if path.startswith("run/")
    }
    for uri, row in listed.items():
        data, info, blob = FILES[uri.removeprefix("az://photos/")], store.stat(uri), store.read(uri)
        assert info is not None and (info.etag, info.size_bytes) == (row["etag"], len(data)) == (blob.etag, len(blob.data))
        assert blob.data == data
        with pytest.raises(ObjectTooLargeError):
            store.read(uri, max_bytes=len(data) - 1)
        with store.open(uri, if_match=row["etag"]) as file:
            file.seek(-3, 2)
            assert file.read() == data[-3:]
        file, etag = store.stream(uri)
        assert (file.read(), etag) == (data, row["etag"])
    obstore.put(container, "run/large.bin", b"other")
    with pytest.raises(ObjectChangedError):
        store.read("az://photos/run/large.bin", if_match=listed["az://photos/run/large.bin"]["etag"])
    assert store.stat("az://photos/none") is None and list(store.list("az://photos/none/")) == []
    with pytest.raises(ObjectNotFoundError):
        store.read("az://photos/none")
    with pytest.raises(SourceError, match="no bucket or container 'nothing'"):
        list(store.list("az://nothing/"))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(b"another key").decode())
    with pytest.raises(AccessError, match="check") as caught:  # of another code than Azure's own answer has
        store.read("az://photos/run/large.bin")
    assert KEY not in str(caught.value)


def test_a_run(container: AzureStore, tmp_path: Path) -> None:
    vectors = {}
    (tmp_path / "photos").mkdir()
    for number in range(4):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(photo(number))
        obstore.put(container, f"images/{number}.jpg", photo(number))
    for name, place in {"local": str(tmp_path / "photos"), "az": "az://photos/images"}.items():
        given = ["extract", "--source.uri", place, "--table", tmp_path / name, *RECIPE, "--local"]
        assert result_of(tlray(*given))["ok"] == 4
        rows = pl.read_delta(str(tmp_path / name))
        vectors[name] = dict(zip((uri[-5:] for uri in rows["uri"]), rows["embedding"].to_list(), strict=True))
    assert vectors["az"] == vectors["local"]
    obstore.put(container, "images/0.jpg", photo(9))
    again = result_of(tlray(*given))
    assert (again["changed"], again["unchanged"], again["deleted"]) == (1, 3, 0)
