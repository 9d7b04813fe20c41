"""Listings against os.walk, DuckDB and Polars."""

import csv
import os
from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tlray.config import SourceConfig
from tlray.errors import SourceError
from tlray.lake.source.open import open_source
from tlray.lake.source.source import PAGE_SCHEMA, Source
from tlray.lake.storage.open import open_store


def source(uri: str | Path, **config: object) -> Source:
    return open_source(SourceConfig(uri=str(uri), **config))  # type: ignore[arg-type]


def items(found: Source) -> pa.Table:
    pages = list(found.pages())
    assert all(page.schema == PAGE_SCHEMA for page in pages)
    return pa.concat_tables(pages)


def names(found: Source) -> list[str]:
    return [uri.removeprefix(found.uri).lstrip("/") for uri in items(found)["uri"].to_pylist()]


def tree(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * len(name))
    return root


class TestImages:
    def test_everything_but_hidden_names(self, tmp_path: Path) -> None:
        root = tree(
            tmp_path, "a/1.jpg", "a/b/2.png", "3.jpg", ".git/4.jpg", "a/._1.jpg", "_success/5.jpg", "a/_6.jpg", "a_/7.jpg"
        )
        found = source(root)
        paths = [Path(folder) / file for folder, _, files in os.walk(root) for file in files]
        walked = {str(path.relative_to(root)): path.stat().st_size for path in paths}
        expected = {name: size for name, size in walked.items() if not any(p[0] in "._" for p in name.split("/"))}
        assert (found.kind, found.format, len(expected)) == ("images", "images", 4)
        assert dict(zip(names(found), items(found)["size_bytes"].to_pylist(), strict=True)) == expected
        assert items(found)["etag"].null_count == 0

    @pytest.mark.parametrize(
        ("include", "exclude", "expected"),
        [
            (("**/*.jpg",), (), {"1.jpg", "a/2.jpg", "a/b/3.jpg"}),
            (("*.jpg",), ("a/b/",), {"1.jpg", "a/2.jpg"}),
            (("/*.jpg",), (), {"1.jpg"}),
            ((), ("*.jpg", "!1.jpg"), {"1.jpg"}),
            (("*.txt", "1.jpg"), (), {"1.jpg", "a/4.txt"}),
            (("a/**",), ("*.txt",), {"a/2.jpg", "a/b/3.jpg"}),
            (("_raw/**",), (), {"_raw/5.jpg"}),
        ],
    )
    def test_globs(self, include: tuple[str, ...], exclude: tuple[str, ...], expected: set[str], tmp_path: Path) -> None:
        root = tree(tmp_path, "1.jpg", "a/2.jpg", "a/b/3.jpg", "a/4.txt", "_raw/5.jpg", ".x/6.jpg")
        found = source(root, include=include, exclude=exclude)
        assert set(names(found)) == expected
        everything = [
            f"file://{root}/{name}" for name in ("1.jpg", "a/2.jpg", "a/b/3.jpg", "a/4.txt", "_raw/5.jpg", ".x/6.jpg")
        ]
        covered = found.covers(pa.array([*everything, f"file://{root}2/1.jpg", "s3://b/1.jpg"]))
        kept = {uri for uri, is_covered in zip(everything, covered[:6], strict=True) if is_covered}
        assert kept == {f"file://{root}/{name}" for name in expected}
        assert not covered[6:].any()

    def test_folder_labels(self, tmp_path: Path) -> None:
        root = tree(tmp_path / "top", "cat/1.jpg", "cat/deep/2.jpg", "3.jpg", "a dog/4.jpg")
        found = items(source(root, labels="folder"))
        labels = {
            Path(uri).name: label for uri, label in zip(found["uri"].to_pylist(), found["label"].to_pylist(), strict=True)
        }
        assert labels == {"1.jpg": "cat", "2.jpg": "deep", "3.jpg": "top", "4.jpg": "a dog"}
        assert items(source(root / "cat" / "1.jpg", labels="folder"))["label"].to_pylist() == ["cat"]
        assert items(source(root / "cat", labels="folder"))["label"].to_pylist() == ["cat", "deep"]

    def test_failures_say_what_was_seen(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"nothing is at file://.*/nowhere"):
            source(tmp_path / "nowhere")
        with pytest.raises(SourceError, match="nothing is at"):
            source(tmp_path)
        tree(tmp_path, "a.txt", "b.txt")
        with pytest.raises(SourceError, match=r"has no image: left out: 2 names that have an ending .*, as a\.txt"):
            items(source(tmp_path, include=("*.jpg",)))
        with pytest.raises(SourceError, match=r"no \*.tar file"):
            items(source(tmp_path, format="webdataset"))
        with pytest.raises(SourceError, match="cannot be 'cls'"):
            source(tmp_path, labels="cls")

    def test_on_s3(self, s3_bucket: str) -> None:
        store = open_store(s3_bucket)
        for name in ("p/cat/1.jpg", "p/dog/2.jpg", "p/.x/3.jpg", "p2/4.jpg"):
            store.write(f"{s3_bucket}/{name}", b"x")
        for uri in (f"{s3_bucket}/p", f"{s3_bucket}/p/"):
            found = items(source(uri, labels="folder"))
            assert found["uri"].to_pylist() == [f"{s3_bucket}/p/cat/1.jpg", f"{s3_bucket}/p/dog/2.jpg"]
            assert found["label"].to_pylist() == ["cat", "dog"]
        assert items(source(s3_bucket)).num_rows == 3
        with pytest.raises(SourceError, match="nothing is at"):
            source(f"{s3_bucket}/q")


class TestManifest:
    def test_csv_as_csv_and_duckdb_have_it(self, tmp_path: Path) -> None:
        path = tmp_path / "m.csv"
        rows = [
            ("a b.jpg", "007", '"e1"', "12"), ("sub/ü,1.jpg", "x\ny", "", ""), ("s3://b/k#1.jpg", "", "e2", "3"),
            ("/abs/c.jpg", "NA", "", "4"), ("../up.jpg", 'q"q', "", ""), ("a b.jpg", "again", "", ""),
        ]  # fmt: skip
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(
                [("id", "label", "etag", "size_bytes", "path"), *((i, *r[1:], r[0]) for i, r in enumerate(rows))]
            )
        found = source(path, labels="label")
        assert (found.kind, found.format) == ("images", "manifest")
        listed = items(found)
        here = f"file://{tmp_path}"
        assert listed["uri"].to_pylist() == [
            f"{here}/a b.jpg", f"{here}/sub/ü,1.jpg", "s3://b/k#1.jpg", "file:///abs/c.jpg", f"file://{tmp_path.parent}/up.jpg",
            f"{here}/a b.jpg",
        ]  # fmt: skip
        assert listed["label"].to_pylist() == ["007", "x\ny", None, "NA", 'q"q', "again"]
        assert listed["etag"].to_pylist() == ["e1", None, "e2", None, None, None]
        assert listed["size_bytes"].to_pylist() == [12, None, 3, 4, None, None]
        assert len(listed) == duckdb.sql(f"select count(*) from read_csv('{path}')").fetchall()[0][0]
        assert found.covers(pa.array(["s3://anything"])).all()

    def test_parquet_tsv_and_folder_labels(self, tmp_path: Path) -> None:
        frame = polars.DataFrame({"file_name": [f"c{i % 3}/{i}.jpg" for i in range(100)], "y": range(100)})
        frame.write_parquet(tmp_path / "m.parquet")
        frame.write_csv(tmp_path / "m.tsv", separator="\t")
        for name in ("m.parquet", "m.tsv"):
            listed = items(source(tmp_path / name, labels="y"))
            assert listed["uri"].to_pylist() == [f"file://{tmp_path}/{one}" for one in frame["file_name"]]
            assert listed["label"].to_pylist() == [str(i) for i in range(100)]
            assert items(source(tmp_path / name, labels="folder"))["label"].to_pylist() == [f"c{i % 3}" for i in range(100)]

    def test_is_streamed(self, tmp_path: Path) -> None:
        path = tmp_path / "m.csv"
        path.write_text("uri\n" + "".join(f"s3://bucket/{'x' * 40}/{index}.jpg\n" for index in range(60_000)))
        pages = [len(page) for page in source(path).pages()]
        assert len(pages) >= 3
        assert sum(pages) == 60_000

    def test_a_row_without_uri(self, tmp_path: Path) -> None:
        polars.DataFrame({"uri": ["s3://b/1.jpg", None]}).write_parquet(tmp_path / "m.parquet")
        with pytest.raises(SourceError, match="no URI in row 2"):
            items(source(tmp_path / "m.parquet"))

    @pytest.mark.parametrize(
        ("text", "config", "says"),
        [
            ("a.jpg,1\nb.jpg,2\n", {}, r"no column of URIs .*; its columns are 'a.jpg', '1'.*put a header line first"),
            ("uri,x\na.jpg,1\n", {"labels": "y"}, "no column 'y' of labels; its columns are uri, x"),
            ("uri,x\na.jpg,1\n", {"column": "y"}, "no column 'y'; its columns are 'uri', 'x'"),
            ("uri,x\na.jpg,1\n,2\n", {}, r"no URI in row 2"),
            ("uri,x\na.jpg,1\nb.jpg,2,3\n", {}, "cannot be read.*Expected 2 columns, got 3"),
            ("uri,size_bytes\na.jpg,big\n", {}, "column 'size_bytes' is not of whole numbers of bytes: .*big"),
            ("uri\nftp://x/a.jpg\n", {}, "row 1 .*scheme 'ftp'"),
            ("", {}, "Empty CSV"),
            ("uri\n", {}, "nothing is listed"),
        ],
    )
    def test_failures(self, text: str, config: dict[str, str], says: str, tmp_path: Path) -> None:
        (tmp_path / "m.csv").write_text(text)
        with pytest.raises(SourceError, match=says):
            items(source(tmp_path / "m.csv", **config))

    def test_a_folder_is_no_manifest(self, tmp_path: Path) -> None:
        tree(tmp_path, "a.csv")
        with pytest.raises(SourceError, match="is a folder"):
            source(tmp_path, format="manifest")

    def test_on_s3_entries_are_beside_it(self, s3_bucket: str) -> None:
        uri = f"{s3_bucket}/in/m.csv"
        open_store(uri).write(uri, b"uri\na.jpg\n../b.jpg\n")
        assert items(source(uri))["uri"].to_pylist() == [f"{s3_bucket}/in/a.jpg", f"{s3_bucket}/b.jpg"]


class TestContainers:
    def test_auto_by_most_names(self, tmp_path: Path) -> None:
        tree(tmp_path / "t", "0.tar", "1.tar", "index.json", ".2.tar")
        found = source(tmp_path / "t")
        assert (found.kind, found.format, names(found)) == ("webdataset", "webdataset", ["0.tar", "1.tar"])
        assert list(items(found)["label"]) == [pa.scalar(None, pa.string())] * 2
        root = f"file://{tmp_path}/t"
        uris = [f"{root}/9.tar#a.jpg", f"{root}/9.tar", f"{root}/9.jpg", f"{root}/.2.tar#a", "file:///9.tar#a"]
        assert found.covers(pa.array(uris)).tolist() == [True, True, False, False, False]

    def test_parquet_is_bytes_or_a_manifest_by_its_columns(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"image": [b"1"], "uri": ["a"]}), tmp_path / "bytes.parquet")
        pq.write_table(pa.table({"image": ["a.jpg"]}), tmp_path / "names.parquet")
        assert source(tmp_path / "bytes.parquet").format == "parquet"
        assert source(tmp_path / "names.parquet").format == "manifest"
        assert source(tmp_path / "bytes.parquet", column="uri").format == "manifest"
        with pytest.raises(SourceError, match="no column 'y' of labels"):
            source(tmp_path / "bytes.parquet", labels="y")
        (tmp_path / "broken.parquet").write_bytes(b"PAR1")
        with pytest.raises(SourceError, match="cannot be read as Parquet"):
            source(tmp_path / "broken.parquet")

    def test_bytes_of_another_kind_beside_names_are_no_images(self, tmp_path: Path) -> None:
        picture = b"\x89PNG\r\n\x1a\n" + b"x" * 20
        for columns, form in (
            ({"uri": ["a.jpg"], "md5": [b"x" * 16]}, "manifest"),
            ({"path": ["a.jpg"], "vector": pa.array([None], pa.binary())}, "manifest"),
            ({"url": ["a.jpg"], "jpg": [picture]}, "parquet"),
            ({"path": ["a.jpg"], "picture": [{"bytes": picture, "path": "a.jpg"}]}, "parquet"),
            ({"data": [b"x"]}, "parquet"),
        ):
            pq.write_table(pa.table(columns), tmp_path / "x.parquet")
            assert source(tmp_path / "x.parquet").format == form
        (tmp_path / "x.parquet").rename(tmp_path / "X.PARQUET")
        found = source(tmp_path / "X.PARQUET")
        assert found.format == "parquet"
        assert found.covers(pa.array([f"file://{tmp_path}/X.PARQUET#0"])).all()

    def test_brace_patterns(self, tmp_path: Path) -> None:
        tree(tmp_path, *(f"s-{index:03}.tar" for index in range(8, 13)))
        found = source(f"{tmp_path}/s-{{008..011}}.tar")
        assert found.kind == "webdataset"
        assert [Path(uri).name for uri in items(found)["uri"].to_pylist()] == [
            "s-008.tar",
            "s-009.tar",
            "s-010.tar",
            "s-011.tar",
        ]
        covered = found.covers(pa.array([f"file://{tmp_path}/s-009.tar#a.jpg", f"file://{tmp_path}/s-012.tar#a.jpg"]))
        assert covered.tolist() == [True, False]
        with pytest.raises(SourceError, match=r"names 6 files, of which 1 are missing: .*s-013.tar"):
            items(source(f"{tmp_path}/s-{{008..013}}.tar"))

    def test_a_file_of_another_name(self, tmp_path: Path) -> None:
        tree(tmp_path, "x.zip")
        with pytest.raises(SourceError, match=r"expected one that ends in \.tar"):
            source(tmp_path / "x.zip", format="webdataset")
