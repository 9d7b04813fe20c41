"""Tar shards and Parquet files against what the standard library and pyarrow wrote into them."""

import io
import itertools
import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tlray.config import SourceConfig
from tlray.errors import ImageError, ImageErrorCode, ObjectChangedError, SourceError
from tlray.lake.source.containers.fetched_image import FetchedImage
from tlray.lake.source.containers.members import ContainerKind, read_members
from tlray.lake.source.member_uri import container_of
from tlray.lake.source.open import open_source
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

    def test_labels_by_their_whole_extension_and_in_nested_json(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tar"
        meta = {"meta": {"class": "c", "tags": ["x", "y"], "a.b": 1.0}, "meta.flat": True, "none": None, "nan": float("nan")}
        texts = [("1.outputs.txt", b"cat\n"), ("1.json", json.dumps(meta).encode()), ("1.info.json", b'{"label": "dog"}')]
        path.write_bytes(make_tar([("1.input.jpg", b"one"), *texts, ("2.input.jpg", b"two"), ("2.json", b"[" * 100_000)]))
        expected = {
            "outputs.txt": "cat", "OUTPUTS.TXT": "cat", "txt": None, "json.meta.class": "c", "json.meta.tags.1": "y",
            "json.meta.a.b": "1", "json.meta.flat": "true", "json.none": None, "json.nan": None, "json.meta": None,
            "json.meta.tags.7": None, "info.json.label": "dog", "json.label": None,
        }  # fmt: skip
        for labels, label in expected.items():
            assert [member.label for member in members(path, labels=labels)] == [label, None], labels

    def test_what_is_no_label_is_left_out_and_said(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tar"
        odd = [("1.cls", "Brücke".encode("latin-1")), ("1.json", b'{"l": ["a"], "half": "\\ud83d", "both": "\\ud83d\\ude00"}')]
        even = [("2.cls", b"\xef\xbb\xbfBr\xc3\xbccke\n"), ("2.json", '{"l": "Brücke"}'.encode("utf-16"))]
        latin = [("3.json", '{"l": "Brücke"}'.encode("latin-1"))]
        path.write_bytes(make_tar([("1.jpg", b"x"), *odd, ("2.jpg", b"y"), *even, ("3.jpg", b"z"), *latin]))
        for labels, found, said in (
            ("cls", [None, "Brücke", None], "1.cls is not UTF-8 (b'Br\\xfccke'); save it as UTF-8: no label"),
            ("json.l", [None, "Brücke", None], "in 1.json, 'l' holds a list, expected one label"),
            ("json.half", [None, None, None], "'\\ud83d' has half of a surrogate pair"),
            ("json.both", ["😀", None, None], ""),
        ):
            images = members(path, labels=labels)
            assert [image.label for image in images] == found
            assert images[0].note.startswith(said) and bool(images[0].note) == bool(said)
            assert [image.note for image in images[1:]] == ["", ""]
        with pytest.raises(SourceError, match=r"x\.tar: 1\.cls is not UTF-8 .* save it as UTF-8"):
            open_source(SourceConfig(uri=str(path), labels="cls"))

    def test_labels_that_are_found_nowhere_are_refused_with_what_is_there(self, tmp_path: Path) -> None:
        for number in range(3):
            texts = [(f"{number}.cls", b"7"), (f"{number}.json", b'{"n": [1]}')] if number == 2 else []
            (tmp_path / f"{number}.tar").write_bytes(make_tar([(f"{number}.jpg", b"x"), *texts]))
        (tmp_path / "3.tar").write_bytes(b"no tar file")

        def check(labels: str) -> None:
            open_source(SourceConfig(uri=str(tmp_path), labels=labels))

        check("cls")  # one of them has it
        for labels, looked in (
            ("klass", r"files \*\.klass beside"),
            ("json.m", "the field 'm' of the files"),
            ("folder", "folders"),
        ):
            with pytest.raises(
                SourceError, match=rf"none of the first 3 images .*{looked}.*there are \*\.jpg, \*\.cls, \*\.json"
            ):
                check(labels)
        with pytest.raises(SourceError, match=r"2\.tar: in 2\.json, 'n' holds a list, expected one label; .* json\.n\.<field>"):
            check("json.n")
        check("json.n.0")

    def test_a_file_that_was_cut_between_two_members_says_so(self, tmp_path: Path) -> None:
        whole, path = make_tar([(f"{number}.jpg", bytes([number]) * 700) for number in range(4)]), tmp_path / "x.tar"
        for count in (1, 2, 3):
            path.write_bytes(whole[: 1536 * count])
            *good, last = members(path)
            assert [member.data for member in good] == [bytes([number]) * 700 for number in range(count)]
            assert (last.uri, code(last)) == (f"file://{path}", ImageErrorCode.TRUNCATED)
        path.write_bytes(whole[: 1536 * 4 + 512])  # half an end marker is one
        assert [code(member) for member in members(path)] == [None] * 4

    def test_archives_one_after_the_other_in_one_file_are_all_read(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tar"
        path.write_bytes(make_tar([("1.jpg", b"1"), ("1.cls", b"a")]) + make_tar([("2.jpg", b"2"), ("2.cls", b"b")]))
        assert [(member.data, member.label) for member in members(path, labels="cls")] == [(b"1", "a"), (b"2", "b")]

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
        for archive in ([], [("a.txt", b"no image"), ("b/.hidden.jpg", b"x")]):
            path.write_bytes(make_tar(archive))
            (only,) = members(path)
            assert (only.uri, code(only), only.label) == (f"file://{path}", ImageErrorCode.NO_IMAGES, None)
            assert only.etag == open_store("file:///").stat(f"file://{path}").etag  # so that the next run knows it

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
        several = r"several columns of bytes \(a, b\); say which with source.column"
        no_images = r"no column 'n' of image bytes; it has a \(binary\), b \(binary\), n \(int64\)"
        for config, message in (({}, several), ({"column": "n"}, no_images)):
            with pytest.raises(SourceError, match=message):
                open_source(SourceConfig(uri=str(path), format="parquet", **config))
            (only,) = members(path, "parquet", **config)
            assert (only.uri, code(only)) == (f"file://{path}", ImageErrorCode.UNSUPPORTED)
            assert re.search(message, str(only.data))
        assert [member.data for member in members(path, "parquet", column="b")] == [b"2"]
        with pytest.raises(SourceError, match="no column 'cls' of labels"):
            open_source(SourceConfig(uri=str(path), format="parquet", column="a", labels="cls"))
        assert [(member.data, member.label) for member in members(path, "parquet", column="a", labels="cls")] == [(b"1", None)]

    def test_a_file_without_rows_and_one_without_the_label(self, tmp_path: Path) -> None:
        pq.write_table(
            pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}), tmp_path / "0.parquet"
        )
        (only,) = members(tmp_path / "0.parquet", "parquet", labels="label")
        assert (only.uri, code(only)) == (f"file://{tmp_path}/0.parquet", ImageErrorCode.NO_IMAGES)
        pq.write_table(pa.table({"image": [b"1"]}), tmp_path / "1.parquet")
        pq.write_table(pa.table({"image": [b"2"], "label": [["x"]]}), tmp_path / "2.parquet")
        (tmp_path / "3.parquet").write_bytes(b"PAR1 this is not Parquet")
        with pytest.raises(SourceError, match=r"has no column 'klass' of labels; it has image \(binary\)"):
            open_source(SourceConfig(uri=str(tmp_path), labels="klass"))
        open_source(SourceConfig(uri=str(tmp_path), labels="label"))
        for number in (1, 2):
            assert [
                (member.data, member.label) for member in members(tmp_path / f"{number}.parquet", "parquet", labels="label")
            ] == [(b"%d" % number, None)]

    def test_memory_is_that_of_few_images_though_the_file_has_one_of_them_a_thousand_times(self, tmp_path: Path) -> None:
        path, image = tmp_path / "x.parquet", os.urandom(2**20)
        pq.write_table(pa.table({"image": pa.array([image] * 1000, pa.binary())}), path, row_group_size=1000)
        assert path.stat().st_size < 2 * len(image)
        pool = pa.system_memory_pool() if pa.default_memory_pool().backend_name == "system" else pa.default_memory_pool()
        before = pool.bytes_allocated()
        count = most = 0
        for member in read_members("parquet", f"file://{path}", None, SourceConfig(uri="x")):
            assert member.data == image
            count, most = count + 1, max(most, pool.bytes_allocated() - before)
        assert count == 1000
        assert most < 32 * len(image)

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

    def test_rows_that_the_footer_has_and_the_columns_have_not_are_missed(self, tmp_path: Path) -> None:
        """Each count in the footer in turn is one off: no row is lost, or gets another's label, without a word."""
        path = tmp_path / "x.parquet"
        images = [b"%d" % number for number in range(100)]
        pq.write_table(pa.table({"image": images, "label": [f"l{number}" for number in range(100)]}), path)
        whole, hundred = path.read_bytes(), b"\xc8\x01"  # as Thrift's compact protocol writes it: zigzag, then base 128
        footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
        places = [found.start() for found in re.finditer(re.escape(hundred), whole) if found.start() >= footer]
        assert len(places) >= 4  # of the file, of its row group, of its two columns
        said = []
        for place, other in itertools.product(places, (b"\xca\x01", b"\xc6\x01")):
            path.write_bytes(whole[:place] + other + whole[place + 2 :])
            *good, last = members(path, "parquet", labels="label")
            if code(last) == ImageErrorCode.CORRUPT:
                said.append(str(last.data))
            else:
                assert len(good) == 99
                good.append(last)
            assert [(member.data, member.label) for member in good] == [(b"%d" % at, f"l{at}") for at in range(len(good))]
        assert any("rows by the footer" in text for text in said)
