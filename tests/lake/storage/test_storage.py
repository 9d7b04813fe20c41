"""Both stores against one set of expectations; boto3 and the file system are the oracles."""

import io
import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import boto3
import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from tlray.demo.s3_server import S3Server
from tlray.errors import AccessError, ObjectChangedError, ObjectNotFoundError, ObjectTooLargeError, SourceError, StorageError
from tlray.lake.storage.open import delta_options, open_store
from tlray.lake.storage.s3 import upload as s3_upload
from tlray.lake.storage.store import ObjectInfo, Store
from tlray.lake.storage.uri import join, to_path, to_uri

ODD_NAMES = [
    "a b.jpg",
    "ünï漢.jpg",
    "a#b.jpg",
    "a%20b.jpg",
    "a+b.jpg",
    "a?b.jpg",
    "a'b\".jpg",
    "a&b<c>.jpg",
    "x" * 240,
    " lead",
]


def listed(store: Store, uri: str) -> dict[str, tuple[str, int]]:
    rows = [row for page in store.list(uri) for row in page.to_pylist()]
    assert len({row["uri"] for row in rows}) == len(rows)
    return {row["uri"]: (row["etag"], row["size_bytes"]) for row in rows}


class StoreConformance:
    """What both stores do alike; `root` is an empty place of the kind."""

    @pytest.fixture
    def store(self, root: str) -> Store:
        return open_store(root)

    def test_write_then_read_stat_and_list_agree(self, root: str, store: Store) -> None:
        uri = join(root, "deep", "er", "a.bin")
        assert store.write(uri, b"hello")
        blob, info = store.read(uri), store.stat(uri)
        assert (blob.data, info) == (b"hello", ObjectInfo(uri, blob.etag, 5))
        assert '"' not in blob.etag
        assert listed(store, root) == {uri: (blob.etag, 5)}
        assert store.write(uri, memoryview(b"hello, world"))
        assert store.read(uri).data == b"hello, world"
        assert store.read(uri).etag != blob.etag

    @pytest.mark.parametrize("name", ODD_NAMES)
    def test_odd_names_come_back_as_they_were(self, name: str, root: str, store: Store) -> None:
        uri = join(root, "odd", name)
        store.write(uri, name.encode())
        assert list(listed(store, root)) == [uri]
        assert store.read(uri).data == name.encode()
        store.delete([uri])
        assert store.stat(uri) is None

    def test_a_prefix_is_a_folder_not_a_beginning(self, root: str, store: Store) -> None:
        inside, beside = join(root, "photos", "a.jpg"), join(root, "photos2", "a.jpg")
        for uri in (inside, beside):
            store.write(uri, b"x")
        assert list(listed(store, join(root, "photos"))) == [inside]
        assert list(listed(store, join(root, "photos/"))) == [inside]
        assert list(listed(store, inside)) == [inside]
        assert listed(store, join(root, "phot")) == {}
        assert set(listed(store, root)) == {inside, beside}

    def test_folders_are_not_objects(self, root: str, store: Store) -> None:
        store.write(join(root, "photos", "a.jpg"), b"x")
        for uri in (
            root,
            join(root, "photos"),
            join(root, "photos/"),
            join(root, "nothing"),
            join(root, "photos", "a.jpg", "b"),
        ):
            assert store.stat(uri) is None
            for read in (store.read, store.open, store.stream):
                with pytest.raises(ObjectNotFoundError):
                    read(uri)

    def test_limits_and_conditions_of_a_read(self, root: str, store: Store) -> None:
        uri = join(root, "a.bin")
        store.write(uri, b"x" * 1000)
        etag = store.read(uri).etag
        assert store.read(uri, max_bytes=1000, if_match=etag).etag == etag
        with pytest.raises(ObjectTooLargeError, match="1000 bytes, more than the limit of 999"):
            store.read(uri, max_bytes=999)
        store.write(uri, b"y" * 1001)
        for read in (store.read, store.open, store.stream):
            with pytest.raises(ObjectChangedError, match="changed since it was listed"):
                read(uri, if_match=etag)

    def test_empty_object(self, root: str, store: Store) -> None:
        uri = join(root, "empty")
        store.write(uri, b"")
        assert store.read(uri).data == b""
        assert store.open(uri).read() == b""
        assert store.stream(uri)[0].read() == b""

    def test_only_one_of_many_writers_if_absent(self, root: str, store: Store) -> None:
        uri = join(root, "race")
        with ThreadPoolExecutor(16) as threads:
            wrote = list(threads.map(lambda i: store.write(uri, b"%02d" % i, if_absent=True), range(16)))
        assert wrote.count(True) == 1
        assert store.read(uri).data == b"%02d" % wrote.index(True)
        assert not store.write(uri, b"late", if_absent=True)
        assert list(listed(store, root)) == [uri], "nothing temporary is left"

    def test_parts_of_an_object_as_a_file_has_them(self, root: str, store: Store) -> None:
        uri, data = join(root, "big"), os.urandom(5 * 2**20 + 17)
        store.write(uri, data)
        ours, oracle = store.open(uri), io.BytesIO(data)
        with ours:
            for offset, whence, length in [
                (-8, 2, 8),
                (0, 0, 4),
                (3_000_000, 0, 2_500_000),
                (10, 1, 5),
                (5 * 2**20, 0, -1),
                (9**9, 0, 9),
            ]:
                assert ours.seek(offset, whence) == oracle.seek(offset, whence)
                assert ours.read(length) == oracle.read(length)
        stream, etag = store.stream(uri)
        with stream:
            assert stream.read(1000) + stream.read() == data
        assert etag == store.read(uri).etag

    def test_delete_many_and_missing(self, root: str, store: Store) -> None:
        uris = [join(root, f"{index}.bin") for index in range(5)]
        for uri in uris:
            store.write(uri, b"x")
        store.delete(iter([*uris[1:], join(root, "never there")]))
        assert list(listed(store, root)) == uris[:1]

    def test_stores_can_be_pickled_and_used_by_many_threads(self, root: str, store: Store) -> None:
        uris = [join(root, f"{index}.bin") for index in range(40)]
        for index, uri in enumerate(uris):
            store.write(uri, b"%d" % index)
        copy = pickle.loads(pickle.dumps(store))
        with ThreadPoolExecutor(16) as threads:
            blobs = list(threads.map(copy.read, uris * 3))
        assert [blob.data for blob in blobs] == [b"%d" % index for index in range(40)] * 3

    def test_delta_commits_conflict(self, root: str) -> None:
        """Delta's own client, with our options: of racing creators one wins, and no append is lost."""
        uri, options = join(root, "table"), delta_options(root)
        at = str(to_path(uri)) if uri.startswith("file") else uri
        rows = pa.table({"x": [1, 2]})

        once = CommitProperties(max_commit_retries=0)  # a retried creation would create over the winner's table

        def attempt(mode: Literal["error", "append"], commit: CommitProperties | None) -> bool:
            try:
                write_deltalake(at, rows, mode=mode, storage_options=options, commit_properties=commit)
            except DeltaError:
                return False
            return True

        with ThreadPoolExecutor(4) as threads:
            made = list(threads.map(lambda _: attempt("error", once), range(4)))
            appended = list(threads.map(lambda _: attempt("append", None), range(6)))
        table = DeltaTable(at, storage_options=options)
        assert made.count(True) == 1
        assert appended.count(True) >= 1
        assert table.version() == appended.count(True)
        assert table.count() == 2 * (1 + appended.count(True))


class TestLocalStore(StoreConformance):
    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/root"

    def test_etag_is_size_and_mtime(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_bytes(b"abc")
        os.utime(path, ns=(1, 1_700_000_000_123_456_789))
        assert open_store("file:///").read(f"file://{path}").etag == "3-1700000000123456789"

    def test_listing_equals_a_walk_with_links(self, tmp_path: Path) -> None:
        for name in ("b/2.jpg", "b/1.jpg", "a/3.jpg", "a/c/d/4.jpg", "0.jpg"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"x")
        (tmp_path / "a" / "loop").symlink_to(tmp_path)
        (tmp_path / "self").symlink_to("self")
        (tmp_path / "nowhere").symlink_to("missing")
        (tmp_path / "link").symlink_to("b")
        os.mkfifo(tmp_path / "pipe")
        found = list(listed(open_store("file:///"), f"file://{tmp_path}"))
        walked = {Path(folder) / file for folder, _, files in os.walk(tmp_path) for file in files}
        assert set(found) == {f"file://{path}" for path in walked if path.name.endswith(".jpg")} | {
            f"file://{tmp_path}/link/{n}.jpg" for n in (1, 2)
        }
        with pytest.raises(ObjectNotFoundError, match="not a file"):
            open_store("file:///").read(f"file://{tmp_path}/pipe")

    def test_a_name_that_is_not_utf8(self, tmp_path: Path) -> None:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"coffee")
        store = open_store("file:///")
        (uri,) = listed(store, f"file://{tmp_path}")
        assert uri == f"file://{tmp_path}/caf\\xe9.jpg"
        assert store.read(uri).data == b"coffee"

    def test_pages_are_bounded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tlray.lake.storage.local.PAGE_ROWS", 3)
        for index in range(7):
            (tmp_path / str(index)).touch()
        assert [len(page) for page in open_store("file:///").list(f"file://{tmp_path}")] == [3, 3, 1]

    @pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
    def test_a_folder_that_may_not_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "secret").mkdir(mode=0o000)
        with pytest.raises(AccessError, match="secret: permission denied"):
            list(open_store("file:///").list(f"file://{tmp_path}"))

    def test_a_folder_that_may_not_be_read_says_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The twin of the one above, for those who run as root."""
        (tmp_path / "secret").mkdir()
        scandir = os.scandir

        def refuse(folder: str) -> object:
            if folder.endswith("secret"):
                raise PermissionError(13, "Permission denied", folder)
            return scandir(folder)

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(AccessError, match="secret: permission denied"):
            list(open_store("file:///").list(f"file://{tmp_path}"))

    def test_impossible_names_are_missing(self, tmp_path: Path) -> None:
        store = open_store("file:///")
        for name in ("nul\0byte", "x" * 300):
            assert store.stat(f"file://{tmp_path}/{name}") is None
            with pytest.raises(ObjectNotFoundError):
                store.read(f"file://{tmp_path}/{name}")

    def test_no_write_leaves_half_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        with pytest.raises(StorageError):
            open_store("file:///").write(f"file://{tmp_path}/folder", b"x")
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]


class TestS3Store(StoreConformance):
    @pytest.fixture
    def root(self, s3_bucket: str) -> str:
        return s3_bucket + "/root"

    def test_listing_equals_boto3(self, s3_bucket: str) -> None:
        bucket, client = s3_bucket.removeprefix("s3://"), boto3.client("s3")
        with ThreadPoolExecutor(16) as threads:
            list(
                threads.map(
                    lambda i: client.put_object(Bucket=bucket, Key=f"k/{i % 7}/{i:05}", Body=b"x" * (i % 5)), range(1203)
                )
            )
        client.put_object(Bucket=bucket, Key="k/marker/", Body=b"")
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        keys = {o["Key"]: (o["ETag"].strip('"'), o["Size"]) for page in pages for o in page["Contents"]}
        assert "k/marker/" in keys
        del keys["k/marker/"]
        assert listed(open_store(s3_bucket), s3_bucket) == {f"{s3_bucket}/{key}": value for key, value in keys.items()}
        open_store(s3_bucket).delete(f"{s3_bucket}/{key}" for key in keys)
        assert listed(open_store(s3_bucket), s3_bucket) == {}

    def test_missing_bucket(self, s3_env: S3Server) -> None:
        store = open_store("s3://no-such-bucket")
        acts: list[Callable[[], object]] = [
            lambda: list(store.list("s3://no-such-bucket/x")),
            lambda: store.read("s3://no-such-bucket/x"),
            lambda: store.write("s3://no-such-bucket/x", b""),
            lambda: store.delete(["s3://no-such-bucket/x"]),
            lambda: delta_options("s3://no-such-bucket/x"),
        ]
        for act in acts:
            with pytest.raises(SourceError, match="there is no bucket 'no-such-bucket'"):
                act()

    @pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
    def test_wrong_credentials(self, name: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(name, "wrong")
        store = open_store(s3_bucket)
        for act in (
            store.stat,
            store.read,
            lambda uri: list(store.list(uri)),
            lambda uri: store.write(uri, b""),
            delta_options,
        ):
            with pytest.raises(AccessError, match="check the AWS credentials"):
                act(s3_bucket + "/x")

    def test_no_credentials(self, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        for act in (open_store(s3_bucket).read, delta_options):
            with pytest.raises(AccessError, match="credentials"):
                act(s3_bucket + "/x")

    def test_delta_options_name_region_and_endpoint(self, s3_bucket: str, s3_env: S3Server) -> None:
        options = delta_options(s3_bucket)
        retries = {"max_retries", "retry_timeout", "backoff_config.max_backoff", "connect_timeout", "timeout"}
        assert {name: value for name, value in options.items() if name not in retries} == {
            "AWS_ACCESS_KEY_ID": s3_env.env["AWS_ACCESS_KEY_ID"],
            "AWS_SECRET_ACCESS_KEY": s3_env.env["AWS_SECRET_ACCESS_KEY"],
            "AWS_REGION": "us-east-1",
            "AWS_CONDITIONAL_PUT": "etag",
            "AWS_ENDPOINT_URL": s3_env.endpoint,
            "AWS_ENDPOINT_URL_S3": s3_env.endpoint,
            "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
            "AWS_ALLOW_HTTP": "true",
        }

    def test_an_object_replaced_between_two_ranges(self, s3_bucket: str) -> None:
        uri, store = s3_bucket + "/big", open_store(s3_bucket)
        store.write(uri, b"a" * 2**22)
        with store.open(uri) as file:
            assert file.read(10) == b"a" * 10
            store.write(uri, b"b" * 2**22)
            file.seek(3 * 2**20)
            with pytest.raises(ObjectChangedError):
                file.read(10)

    def test_a_large_object_goes_in_parts(self, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(s3_upload, "LARGE_BYTES", 12 * 2**20)
        monkeypatch.setattr(s3_upload, "PART_BYTES", 5 * 2**20)
        uri, store, data = s3_bucket + "/large", open_store(s3_bucket), os.urandom(12 * 2**20 + 1)
        bucket, client = s3_bucket.removeprefix("s3://"), boto3.client("s3")
        assert store.write(uri, memoryview(data), if_absent=True)
        info = store.stat(uri)
        assert info is not None and info.etag.endswith("-3") and store.read(uri).data == data
        assert not store.write(uri, data[::-1], if_absent=True)
        assert not store.write(uri, data[::-1], if_match="0" * 32 + "-3")
        assert store.read(uri).data == data
        assert store.write(uri, data[::-1], if_match=info.etag) and store.read(uri).data == data[::-1]
        assert not store.write(s3_bucket + "/other", data, if_match=info.etag)
        assert list(listed(store, s3_bucket)) == [uri]
        assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")

    def test_threads_share_one_client(self, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from tlray.lake.storage.s3 import client as s3_client

        made, connect = [], s3_client._connect
        monkeypatch.setattr(s3_client, "_connect", lambda *given: made.append(threading.get_ident()) or connect(*given))
        monkeypatch.setattr(s3_client, "_CONNECTIONS", s3_client._Connections())
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(lambda i: open_store(s3_bucket).stat(f"{s3_bucket}/{i}"), range(64)))
        assert len(made) == 1


class TestUris:
    def test_to_uri(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", "/home/someone")
        assert to_uri("photos/a b.jpg") == f"file://{tmp_path}/photos/a b.jpg"
        assert to_uri("photos/../x/") == f"file://{tmp_path}/x"
        assert to_uri("~/x") == "file:///home/someone/x"
        assert to_uri("s3a://b/k%20#?") == "s3://b/k%20#?"
        for same in ("s3://b/a//b/", "file:///a b"):
            assert to_uri(same) == same

    def test_file_uris_as_others_write_them(self, tmp_path: Path) -> None:
        """RFC 8089 and `Path.as_uri` encode; a name that is there as it is written wins over the one that is meant by it."""
        photo = tmp_path / "my photos" / "über 100%.jpg"
        photo.parent.mkdir()
        photo.touch()
        assert to_uri(photo.as_uri()) == f"file://{photo}" != photo.as_uri()
        assert to_uri(photo.as_uri().replace("file://", "file:")) == f"file://{photo}"
        assert to_uri(photo.as_uri().replace("file://", "FILE://localhost")) == f"file://{photo}"
        assert to_uri(photo.parent.as_uri() + "/") == f"file://{photo.parent}/"
        assert to_uri((photo.parent / "not there yet").as_uri()) == f"file://{photo.parent}/not there yet"
        literal = tmp_path / "my%20photos"
        literal.mkdir()
        assert to_uri(f"file://{literal}") == f"file://{literal}"
        assert to_uri(str(tmp_path / "a%20b")) == f"file://{tmp_path}/a%20b", "a path is no URI"
        assert to_uri(f"file://{tmp_path}/%FF.jpg") == f"file://{tmp_path}/%FF.jpg"
        (tmp_path / os.fsdecode(b"\xff.jpg")).touch()
        assert to_uri(f"file://{tmp_path}/%FF.jpg") == f"file://{tmp_path}/\\xff.jpg"
        assert open_store("file:///").read(f"file://{tmp_path}/\\xff.jpg").data == b""

    @pytest.mark.parametrize(
        ("text", "says"),
        [("ftp://b/k", "scheme 'ftp'"), ("", "empty"), ("s3:///k", "no bucket"), ("file://host/x", "absolute")],
    )
    def test_refused(self, text: str, says: str) -> None:
        with pytest.raises(SourceError, match=says):
            to_uri(text)

    def test_join_and_path(self) -> None:
        assert join("s3://b", "x", "y#1") == "s3://b/x/y#1"
        assert join("s3://b/x/", "y") == "s3://b/x/y"
        assert to_path("file:///a b/%20#c") == Path("/a b/%20#c")
        with pytest.raises(SourceError):
            to_path("s3://b/x")
