"""Tar shards and Parquet files against what the standard library and pyarrow wrote into them."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tlray.config import SourceConfig
from tlray.errors import ImageError, ImageErrorCode, ObjectChangedError, SourceError
from tlray.lake.source.containers.member_uri import container_of
from tlray.lake.source.containers.members import ContainerKind, FetchedImage, read_members
from tlray.lake.storage.open import open_store


def make_tar(files: list[tuple[str, bytes]], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def members(path: Path, kind: ContainerKind = "webdataset", **config: object) -> list[FetchedImage]:
    uri = f"file://{path}"
    return list(read_members(kind, uri, None, SourceConfig(uri=uri, **config)))  # type: ignore[arg-type]


def names(found: list[FetchedImage]) -> list[str]:
    return [member.uri.partition("#")[2] for member in found]


def code(member: FetchedImage) -> ImageErrorCode | None:
    return member.data.code if isinstance(member.data, ImageError) else None


class TestTar:
    def test_images_labels_and_etag(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tar"
        files = [
            ("a/1.jpg", b"one"), ("a/1.cls", b"7\n"), ("a/1.json", b'{"n": 3, "text": "a cat"}'),
            ("a/2.json", b'{"n": null}'), ("a/2.cls", b"8"), ("a/2.PNG", b"two"), ("a/2.seg.webp", b"two b"),
            ("b/3.jpg", b"three"), ("b/.4.jpg", b"hidden"), ("README.md", b"no image"),
        ]  # fmt: skip
        path.write_bytes(make_tar(files))
        etag = open_store("file:///").read(f"file://{path}").etag
        found = members(path, labels="cls")
        assert names(found) == ["a/1.jpg", "a/2.PNG", "a/2.seg.webp", "b/3.jpg"]
        assert [member.data for member in found] == [b"one", b"two", b"two b", b"three"]
        assert {member.etag for member in found} == {etag}
        assert [member.label for member in found] == ["7", "8", "8", None]
        assert [member.label for member in members(path, labels="json.text")] == ["a cat", None, None, None]
        assert [member.label for member in members(path, labels="json.n")] == ["3", None, None, None]
        assert [member.label for member in members(path, labels="folder")] == ["a", "a", "a", "b"]
        assert [member.label for member in members(path)] == [None] * 4

    def test_repeated_names_have_uris_of_their_own(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tar"
        path.write_bytes(make_tar([("a.jpg", b"1"), ("a.jpg", b"2"), ("b.jpg", b"3"), ("a.jpg", b"4")]))
        assert names(members(path)) == ["a.jpg", "a.jpg#2", "b.jpg", "a.jpg#3"]
        assert {container_of(member.uri) for member in members(path)} == {f"file://{path}"}

    def test_too_large_and_links(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tar"
        with tarfile.open(path, "w") as archive:
            for name, size in (("a.jpg", 100), ("b.jpg", 101)):
                info = tarfile.TarInfo(name)
                info.size = size
                archive.addfile(info, io.BytesIO(b"x" * size))
            info = tarfile.TarInfo("c.jpg")
            info.type, info.linkname = tarfile.LNKTYPE, "a.jpg"
            archive.addfile(info)
        found = members(path, max_image_bytes=100)
        assert [code(member) for member in found] == [None, ImageErrorCode.TOO_LARGE, ImageErrorCode.UNSUPPORTED]

    @pytest.mark.parametrize("labels", ["none", "cls"])
    def test_cut_anywhere_gives_a_prefix_and_says_so(self, labels: str, tmp_path: Path) -> None:
        files = [(f"{index}.jpg", bytes([index]) * 700) for index in range(4)]
        whole, path = make_tar(files), tmp_path / "x.tar"
        for cut in [1, 511, 513, 800, 1536 + 100, 1536 * 2 + 512, 1536 * 3 - 300, 1536 * 4 - 400]:
            path.write_bytes(whole[:cut])
            *good, last = members(path, labels=labels)
            assert (last.uri, code(last)) == (f"file://{path}", ImageErrorCode.TRUNCATED)
            assert [member.data for member in good] == [data for _, data in files[: len(good)]]
            assert len(good) == sum(1536 * index + 512 + 700 <= cut for index in range(4))

    @pytest.mark.parametrize("damage", [0, 1536, 3072])
    def test_a_damaged_header_is_not_taken_for_the_end(self, damage: int, tmp_path: Path) -> None:
        whole, path = bytearray(make_tar([(f"{index}.jpg", b"x" * 700) for index in range(4)])), tmp_path / "x.tar"
        whole[damage + 10] ^= 0xFF
        path.write_bytes(whole)
        *good, last = members(path)
        assert len(good) == damage // 1536
        assert (last.uri, code(last)) == (f"file://{path}", ImageErrorCode.CORRUPT)

    def test_empty_file_and_empty_archive(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tar"
        path.write_bytes(b"")
        assert [code(member) for member in members(path)] == [ImageErrorCode.CORRUPT]
        path.write_bytes(make_tar([]))
        assert members(path) == []

    def test_odd_names(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tar"
        odd = ["a#b.jpg", "ü 漢.jpg", "x" * 300 + ".jpg", "p%20.jpg"]
        path.write_bytes(make_tar([(name, b"1") for name in odd]))
        assert names(members(path)) == odd
        latin = make_tar([("caf\udce9.jpg", b"1")])
        path.write_bytes(latin)
        assert names(members(path)) == ["caf\\xe9.jpg"]

    def test_replaced_since_it_was_listed(self, tmp_path: Path) -> None:
        uri = f"file://{tmp_path}/x.tar"
        (tmp_path / "x.tar").write_bytes(make_tar([("a.jpg", b"1")]))
        with pytest.raises(ObjectChangedError):
            list(read_members("webdataset", uri, "other", SourceConfig(uri=uri)))

    def test_from_s3(self, s3_bucket: str) -> None:
        files = [(f"{index:03}.jpg", bytes([index]) * 20_000) for index in range(200)]
        uri = f"{s3_bucket}/x.tar"
        open_store(uri).write(uri, make_tar(files))
        found = list(read_members("webdataset", uri, None, SourceConfig(uri=uri)))
        assert [(member.uri, member.data) for member in found] == [(f"{uri}#{name}", data) for name, data in files]


def plain(images: list[bytes | None]) -> pa.Array:
    return pa.array(images, pa.binary())


def hugging_face(images: list[bytes | None]) -> pa.Array:
    rows = [{"bytes": image, "path": f"{index}.jpg"} for index, image in enumerate(images)]
    return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


class TestParquet:
    @pytest.mark.parametrize("column", [plain, hugging_face])
    def test_rows_in_order_whatever_the_groups(self, column: Callable[[list[bytes | None]], pa.Array], tmp_path: Path) -> None:
        images = [b"%d" % index * 50 for index in range(1000)]
        images[5] = None  # type: ignore[call-overload]
        images[6] = b"x" * 2000
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table({"image": column(images), "label": pa.array(range(1000))}), path, row_group_size=300)
        found = members(path, "parquet", labels="label", max_image_bytes=1999)
        assert names(found) == [str(index) for index in range(1000)]
        assert [member.label for member in found] == [str(index) for index in range(1000)]
        assert (code(found[5]), code(found[6])) == (ImageErrorCode.EMPTY, ImageErrorCode.TOO_LARGE)
        assert [m.data for i, m in enumerate(found) if i not in (5, 6)] == [d for i, d in enumerate(images) if i not in (5, 6)]

    def test_columns_are_named_in_the_message(self, tmp_path: Path) -> None:
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table({"a": [b"1"], "b": [b"2"], "n": [1]}), path)
        with pytest.raises(SourceError, match=r"several columns of bytes \(a, b\); say which with source.column"):
            members(path, "parquet")
        assert [member.data for member in members(path, "parquet", column="b")] == [b"2"]
        with pytest.raises(SourceError, match=r"no column 'n' of image bytes; it has a \(binary\), b \(binary\), n \(int64\)"):
            members(path, "parquet", column="n")
        with pytest.raises(SourceError, match="no column 'cls' of labels"):
            members(path, "parquet", column="a", labels="cls")

    def test_broken_file(self, tmp_path: Path) -> None:
        path = tmp_path / "x.parquet"
        path.write_bytes(b"PAR1 this is not Parquet")
        (only,) = members(path, "parquet")
        assert (only.uri, code(only)) == (f"file://{path}", ImageErrorCode.CORRUPT)

    def test_from_s3(self, s3_bucket: str) -> None:
        images = [bytes([index]) * 30_000 for index in range(100)]
        buffer, uri = io.BytesIO(), f"{s3_bucket}/x.parquet"
        pq.write_table(pa.table({"image": images, "meta": [json.dumps(i) for i in range(100)]}), buffer, row_group_size=40)
        open_store(uri).write(uri, buffer.getvalue())
        found = list(read_members("parquet", uri, None, SourceConfig(uri=uri)))
        assert [member.data for member in found] == images
