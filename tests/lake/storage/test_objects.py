"""Sources in Google Cloud Storage, read from a real server of its protocol on loopback; what is said of others."""

import io
import os
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from tests.lake.storage.gcs_server import GcsServer
from tests.photos import RECIPE, error_of, photo, result_of, tlray
from tlray.errors import ObjectChangedError, ObjectNotFoundError, ObjectTooLargeError, StorageError, StoreAwayError
from tlray.lake.storage.open import open_store

NAMES = ("a/1.jpg", "a/2 ü#x%41.jpg", "a/sub/3.jpg", "ab/4.jpg")


@pytest.fixture(scope="module")
def running() -> Iterator[GcsServer]:
    with GcsServer() as server:
        server.make_bucket("photos")
        for name in NAMES:
            server.put("photos", name, name.encode())
        server.put("photos", "a/empty.jpg", b"")
        server.put("photos", "a/", b"")  # as consoles mark a folder
        yield server


@pytest.fixture
def server(running: GcsServer, monkeypatch: pytest.MonkeyPatch) -> GcsServer:
    for name, value in running.env.items():
        monkeypatch.setenv(name, value)
    return running


def listed(uri: str, **more: str) -> list[str]:
    return sorted(name for page in open_store(uri).list(uri, **more) for name in page["uri"].to_pylist())


@pytest.mark.usefixtures("server")
def test_listing() -> None:
    of_a = ["gs://photos/a/1.jpg", "gs://photos/a/2 ü#x%41.jpg", "gs://photos/a/empty.jpg", "gs://photos/a/sub/3.jpg"]
    assert listed("gs://photos/a") == listed("gs://photos/a/") == of_a
    assert listed("gs://photos") == listed("gs://photos/") == [*of_a, "gs://photos/ab/4.jpg"]
    assert listed("gs://photos/a/1.jpg") == of_a[:1]
    assert listed("gs://photos/none") == []
    assert listed("gs://photos", first="gs://photos/a/empty.jpg", end="gs://photos/ab/") == of_a[2:]


@pytest.mark.usefixtures("server")
def test_reading() -> None:
    store = pickle.loads(pickle.dumps(open_store("gs://photos")))
    etags = {row["uri"]: row["etag"] for page in store.list("gs://photos") for row in page.to_pylist()}
    for name in NAMES:
        uri = f"gs://photos/{name}"
        assert store.read(uri, if_match=etags[uri]).data == name.encode()
        info = store.stat(uri)
        assert info is not None and (info.etag, info.size_bytes) == (etags[uri], len(name.encode()))
    assert store.stat("gs://photos/a") is None
    assert store.stat("gs://photos/none") is None
    with pytest.raises(ObjectNotFoundError):
        store.read("gs://photos/none")
    with pytest.raises(ObjectTooLargeError, match="7 bytes"):
        store.read("gs://photos/a/1.jpg", max_bytes=6)
    with pytest.raises(ObjectChangedError):
        store.read("gs://photos/a/1.jpg", if_match="x")


def test_parts_of_a_large_object_of_one_version(server: GcsServer) -> None:
    data = bytes(range(256)) * 80_000  # 20 MB: several ranges
    server.put("photos", "large/x", data)
    uri = "gs://photos/large/x"
    store = open_store(uri)
    with store.open(uri) as file:
        assert (file.seek(-300, io.SEEK_END), file.read()) == (len(data) - 300, data[-300:])
        assert (file.seek(1_000_001), file.read(10)) == (1_000_001, data[1_000_001:1_000_011])
    stream, etag = store.stream(uri)
    with stream:
        assert stream.read() == data
    stream, _ = store.stream(uri, if_match=etag)
    with stream:
        assert stream.read(10) == data[:10]
        server.put("photos", "large/x", data[::-1])
        with pytest.raises(ObjectChangedError):
            stream.read()
    server.delete("photos", "large/x")


def test_a_table_of_photos_and_of_a_tar(server: GcsServer, tmp_path: Path) -> None:
    local = tmp_path / "photos"
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for number in range(4):
            data = photo(number)
            path = local / "cat" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            server.put("photos", f"run/cat/{number}.jpg", data)
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    server.put("photos", "shards/x.tar", shard.getvalue())
    vectors = {}
    for name, source in {"local": str(local), "gs": "gs://photos/run", "tar": "gs://photos/shards/x.tar"}.items():
        table = str(tmp_path / name)
        assert result_of(tlray("extract", "--source.uri", source, "--table", table, *RECIPE, "--local"))["ok"] == 4
        rows = pl.read_delta(table)
        vectors[name] = dict(zip((uri[-5:] for uri in rows["uri"]), rows["embedding"].to_list(), strict=True))
    assert vectors["gs"] == vectors["tar"] == vectors["local"]
    server.put("photos", "run/cat/0.jpg", photo(9))
    server.delete("photos", "run/cat/1.jpg")
    again = result_of(tlray("extract", "--source.uri", "gs://photos/run", "--table", str(tmp_path / "gs"), *RECIPE, "--local"))
    assert (again["changed"], again["deleted"], again["unchanged"]) == (1, 1, 2)


@pytest.mark.usefixtures("server")
def test_a_name_that_cannot_be_asked_for_fails_alone() -> None:
    with pytest.raises(StorageError, match="a//b"):
        open_store("gs://photos").read("gs://photos/a//b")


def test_a_store_that_is_away_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with GcsServer() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        server.make_bucket("photos")
        server.put("photos", "x", b"x")
        assert open_store("gs://photos").read("gs://photos/x").data == b"x"
    with pytest.raises(StoreAwayError, match="run the same command again"):
        open_store("gs://photos").read("gs://photos/x")


@pytest.mark.parametrize("place", ["gs://photos/table", "az://photos/table"])
def test_tables_are_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(photo(1))
    said = error_of(tlray("extract", "--source.uri", str(tmp_path), "--table", place, *RECIPE, "--local"))
    assert f"{place[:5]} holds sources, and is only read" in said and "s3://bucket/key or a local path" in said


def test_the_account_of_azure_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    said = error_of(tlray("extract", "--source.uri", "az://photos/a", "--table", str(tmp_path / "t"), *RECIPE, "--local"))
    assert "AZURE_STORAGE_ACCOUNT_NAME" in said
