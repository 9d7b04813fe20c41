"""Runs whose files hold no images or no labels: what there is none of is known afterwards, counted and said."""

import io
import tarfile
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tests.photos import RECIPE, error_of, frame_of, photo, result_of, tlray, write_photos


def make_tar(path: Path, *files: tuple[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def extract(source: Path, table: Path, *more: str) -> tuple[dict[str, Any], str]:
    process = tlray("extract", "--local", "--source.uri", source, "--table", table, *RECIPE, *more)
    return result_of(process), process.stderr


def test_a_tar_file_without_images_is_read_once(tmp_path: Path) -> None:
    shards, table = tmp_path / "shards", tmp_path / "t"
    shards.mkdir()
    make_tar(shards / "0.tar")
    make_tar(shards / "1.tar", ("a.jpg", photo(1)), ("a.cls", b"1"))
    make_tar(shards / "2.tar", ("a.txt", b"no image"))
    first, said = extract(shards, table)
    assert (first["listed"], first["new"], first["ok"], first["failed"], first["failures"]) == (3, 3, 1, 0, {})
    assert first["left_out"] == {"no_images": 2}
    assert said.count("no image is in file://") == 2 and "failed:" not in said
    frame = frame_of(table)
    assert dict(zip(frame["uri"].str.split("/").list.last(), frame["error"], strict=True)) == {
        "0.tar": "no_images", "1.tar#a.jpg": None, "2.tar": "no_images",
    }  # fmt: skip
    again, _ = extract(shards, table)
    assert (again["unchanged"], again["new"], again["changed"], again["left_out"]) == (3, 0, 0, {})
    assert result_of(tlray("verify", table))["failed"] == 2
    make_tar(shards / "2.tar", ("b.jpg", photo(2)), ("b.txt", b"an image"))
    (shards / "0.tar").unlink()
    changed, _ = extract(shards, table)
    assert (changed["changed"], changed["deleted"], changed["unchanged"], changed["ok"]) == (1, 1, 1, 1)
    assert sorted(frame_of(table)["uri"].str.split("/").list.last()) == ["1.tar#a.jpg", "2.tar#b.jpg"]


def test_parquet_files_without_rows_labels_or_images(tmp_path: Path) -> None:
    data, table = tmp_path / "data", tmp_path / "t"
    data.mkdir()
    labelled = {"image": [photo(number) for number in range(3)], "label": [1.0, float("nan"), 2.0]}
    pq.write_table(pa.table(labelled), data / "a.parquet")
    pq.write_table(pa.table({"image": [photo(5)]}), data / "test.parquet")
    pq.write_table(pa.schema([("image", pa.binary()), ("label", pa.int64())]).empty_table(), data / "empty.parquet")
    pq.write_table(pa.table({"name": ["no images at all"]}), data / "meta.parquet")
    result, said = extract(data, table, "--source.labels", "label")
    assert (result["ok"], result["failures"], result["unlabelled"]) == (4, {"unsupported": 1}, 2)
    assert "2 of the images embedded have no label" in said and "meta.parquet has no column of image bytes" in said
    labels = frame_of(table).filter(pl.col("status") == "ok").sort("uri")["label"].to_list()
    assert labels == ["1", None, "2", None]
    again, _ = extract(data, table, "--source.labels", "label")
    assert (again["unchanged"], again["new"], again["changed"], again["failed"]) == (4, 0, 0, 0)
    message = error_of(tlray("extract", "--local", "--source.uri", data, "--table", table, *RECIPE, "--source.labels", "klass"))
    assert "has no column 'klass' of labels" in message


def test_what_is_left_out_is_said_and_in_the_result(tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos", 4)
    (tmp_path / "photos" / "notes.csv").write_text("a,b\n")
    (tmp_path / "photos" / ".cat.jpg").write_bytes(b"x")
    for run in ("--dry-run", "--no-dry-run"):
        result, said = extract(tmp_path / "photos", tmp_path / "t", run)
        assert result["left_out"] == {"hidden": 1, "ending": 1}
        assert "left out: 1 names that begin with a dot" in said and "as notes.csv" in said
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,label\n" + "".join(f"{path},\n" for path in [*paths, paths[0], paths[0]]) + f"{paths[1]},dog\n")
    result, said = extract(manifest, tmp_path / "t2", "--source.labels", "label")
    assert (result["listed"], result["left_out"], result["unlabelled"]) == (4, {"repeated": 3}, 4)
    assert "left out: 3 names that were named before" in said and "4 listed images have no label" in said


def test_a_run_over_a_slice_keeps_the_labels_of_a_wider_one(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 12)
    extract(tmp_path / "photos", tmp_path / "t", "--source.labels", "folder")
    before = frame_of(tmp_path / "t").drop("embedding")
    for folder in sorted(path for path in (tmp_path / "photos").iterdir() if path.is_dir()):
        result, _ = extract(folder, tmp_path / "t", "--source.labels", "folder")
        assert (result["changed"], result["new"], result["deleted"]) == (0, 0, 0)
    assert frame_of(tmp_path / "t").drop("embedding").equals(before)
