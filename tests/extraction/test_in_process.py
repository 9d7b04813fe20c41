"""`tlray extract --local`, from the command line to what other engines read."""

import csv
import io
import json
import shutil
import signal
import tarfile
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import timm
import torch
from deltalake import DeltaTable

from tests import corpora
from tests.photos import RECIPE, error_of, frame_of, photo, plain_embeddings, result_of, tlray, write_photos
from tlray.config import ExtractConfig, RecipeConfig, SourceConfig
from tlray.errors import ImageErrorCode, StorageError
from tlray.extraction.extract import extract as in_library
from tlray.extraction.plan import estimate as sample
from tlray.extraction.run import run as run_module

RESULT_KEYS = {
    "run",
    *("table", "version", "recipe_id", "listed", "new", "changed", "deleted", "unchanged", "ok", "failed", "failures"),
    *("left_out", "unlabelled"),
    *("seconds", "images_per_second", "computed_by", "engine_trials", "bottleneck", "advice", "stages"),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "test_resnet.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    return path


def extract(source: Path, table: Path, *more: str) -> dict:
    return result_of(tlray("extract", "--local", "--source.uri", source, "--table", table, *RECIPE, *more))


def test_rows_equal_what_timm_computes(tmp_path: Path, weights: Path) -> None:
    paths = sorted(write_photos(tmp_path / "photos", 40))
    recipe = ["--recipe.backbone", "timm:test_resnet", "--recipe.weights", str(weights)]
    arguments = ["extract", "--local", "--source.uri", tmp_path / "photos", "--source.labels", "folder", *recipe]
    result = result_of(tlray(*arguments, "--table", tmp_path / "t", "--recipe.precision.compute", "fp32"))
    assert set(result) == RESULT_KEYS
    assert (result["listed"], result["new"], result["ok"], result["failed"]) == (40, 40, 40, 0)
    frame = frame_of(tmp_path / "t")
    assert frame["uri"].to_list() == [f"file://{path}" for path in paths]
    assert frame["label"].to_list() == [path.parent.name for path in paths]
    assert set(zip(frame["width"], frame["height"], strict=True)) == {(96, 64)}
    assert frame["etag"].to_list() == [f"{path.stat().st_size}-{path.stat().st_mtime_ns}" for path in paths]
    oracle = plain_embeddings(paths, torch.load(weights, weights_only=True))
    vectors = np.array(frame["embedding"].to_list())
    cosines = (vectors * oracle).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(oracle, axis=1)
    assert cosines.min() >= 0.9999
    assert np.allclose(vectors, oracle, rtol=2e-3, atol=1e-4)
    by_bf16 = result_of(tlray(*arguments, "--table", tmp_path / "t16"))
    assert by_bf16["recipe_id"] != result["recipe_id"]
    vectors = np.array(frame_of(tmp_path / "t16")["embedding"].to_list())
    cosines = (vectors * oracle).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(oracle, axis=1)
    assert cosines.min() >= 0.999


def test_every_engine_reads_lists_of_floats(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 6)
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"no picture")
    extract(tmp_path / "photos", tmp_path / "t", "--max-failed-fraction", "1")
    files = DeltaTable(tmp_path / "t").file_uris()
    frame = frame_of(tmp_path / "t")
    assert frame.schema["embedding"] == pl.List(pl.Float32)
    assert sorted(frame["embedding"].list.len().to_list(), key=str) == [96] * 6 + [None]
    rows = duckdb.sql(
        f"select typeof(embedding), len(embedding), status, count(*) from read_parquet({files!r}, hive_partitioning=true) "
        "group by all order by status"
    ).fetchall()
    assert rows == [("FLOAT[]", None, "failed", 1), ("FLOAT[]", 96, "ok", 6)]
    frames = [pd.read_parquet(file) for file in files]
    assert sorted(len(frame) for frame in frames) == [1, 6]
    assert {vector.dtype for frame in frames for vector in frame["embedding"] if vector is not None} == {np.dtype("float32")}


def test_the_table_follows_its_source(tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos", 30)
    extract(tmp_path / "photos", tmp_path / "t")
    again = extract(tmp_path / "photos", tmp_path / "t")
    assert (again["unchanged"], again["new"], again["ok"], again["version"]) == (30, 0, 0, 1)
    write_photos(tmp_path / "photos", 5, first=100)
    paths[0].write_bytes(photo(1000, (50, 50)))
    paths[1].unlink()
    later = extract(tmp_path / "photos", tmp_path / "t")
    assert [later[key] for key in ("listed", "new", "changed", "deleted", "unchanged", "ok")] == [34, 5, 1, 1, 28, 6]
    frame, fresh = frame_of(tmp_path / "t"), tmp_path / "fresh"
    extract(tmp_path / "photos", fresh)
    assert_same(frame, frame_of(fresh))
    assert frame_of(tmp_path / "t").filter(pl.col("uri").str.ends_with(paths[0].name))["width"].to_list() == [50]


def assert_same(one: pl.DataFrame, other: pl.DataFrame) -> None:
    assert one.drop("embedding").equals(other.drop("embedding"))
    for left, right in zip(one["embedding"], other["embedding"], strict=True):
        assert (left is None) == (right is None)
        assert left is None or np.allclose(left, right, rtol=2e-3, atol=1e-5)


def test_too_many_failures_end_the_run_with_all_rows_kept(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 10)
    for number in range(3):
        (tmp_path / "photos" / f"bad{number}.jpg").write_bytes(photo(number)[:200])
    run = ["extract", "--local", "--source.uri", tmp_path / "photos", "--table", tmp_path / "t", *RECIPE]
    process = tlray(*run)
    message = error_of(process, 3)
    assert "3 of 13 images failed (3 truncated)" in message and "--max-failed-fraction" in message
    assert process.stderr.count("failed: file://") == 3
    assert frame_of(tmp_path / "t")["error"].to_list().count("truncated") == 3
    assert result_of(tlray(*run))["unchanged"] == 13


def test_one_bad_file_among_ten_does_not_fail_a_run(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 10)
    (tmp_path / "photos" / "bad.jpg").write_bytes(photo(1)[:200])
    run = ["extract", "--local", "--source.uri", tmp_path / "photos", *RECIPE]
    assert result_of(tlray(*run, "--table", tmp_path / "t"))["failures"] == {"truncated": 1}
    strict = tlray(*run, "--table", tmp_path / "strict", "--max-failed-fraction", "0")
    assert "1 of 11 images failed" in error_of(strict, 3)
    only = [*run, "--source.include", "bad.jpg", "--table", tmp_path / "only"]
    assert "1 of 1 images failed" in error_of(tlray(*only), 3)
    assert result_of(tlray(*only[:-1], tmp_path / "any", "--max-failed-fraction", "1"))["failed"] == 1


def test_a_run_over_its_budget_is_finished_before_it_is_judged(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number:03}.jpg").write_bytes(photo(number, (32, 24))[: 100 if number % 10 == 0 else None])
    message = error_of(tlray("extract", "--local", "--source.uri", tmp_path, "--table", tmp_path / "_t", *RECIPE), 3)
    assert "30 of 300 images failed" in message
    assert len(frame_of(tmp_path / "_t")) == 300


def test_a_library_call_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    """Signal handlers and Arrow's allocator belong to the program; the command's are its own."""
    write_photos(tmp_path / "photos", 3)
    before, pool = signal.getsignal(signal.SIGTERM), pa.default_memory_pool().backend_name
    seen = []
    recipe = RecipeConfig(backbone="timm:test_resnet", weights="random:7")
    config = ExtractConfig(
        source=SourceConfig(uri=str(tmp_path / "photos")), recipe=recipe, table=str(tmp_path / "t"), local=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "optimize", lambda *_, **__: seen.append(signal.getsignal(signal.SIGTERM)))
        assert in_library(config)["ok"] == 3
    assert seen == [before] and signal.getsignal(signal.SIGTERM) == before
    assert pa.default_memory_pool().backend_name == pool


def test_all_corpora_give_one_row_a_file(tmp_path: Path) -> None:
    folder = corpora.corpus()
    result = extract(folder, tmp_path / "t", "--max-failed-fraction", "1")
    visible = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((".", "_"))]
    files = [path for path in visible if path.name not in ("README.md", "LICENSE")]
    assert result["left_out"]["ending"] == len(visible) - len(files)
    frame = frame_of(tmp_path / "t")
    assert result["listed"] == len(files) == len(frame) == frame["uri"].n_unique()
    assert set(frame["uri"]) == {f"file://{path}" for path in files}
    failed = frame.filter(pl.col("status") == "failed")
    assert set(failed["error"]) <= {str(code) for code in ImageErrorCode}
    assert result["failures"] == {row["error"]: row["count"] for row in failed["error"].value_counts().to_dicts()}
    assert failed["embedding"].null_count() == len(failed)
    vectors = np.array(frame.filter(pl.col("status") == "ok")["embedding"].to_list())
    assert vectors.shape == (result["ok"], 96) and np.isfinite(vectors).all()


def test_a_manifest_with_labels_relative_to_itself(tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos", 8)
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "label"])
        writer.writerows([[path.relative_to(tmp_path), f"class {number}"] for number, path in enumerate(paths)])
        writer.writerow(["photos/missing.jpg", "nowhere"])
        writer.writerow([paths[0].relative_to(tmp_path), "again"])
    result = extract(tmp_path / "labels.csv", tmp_path / "t", "--source.labels", "label", "--max-failed-fraction", "0.5")
    assert (result["listed"], result["ok"], result["failures"]) == (9, 8, {"not_found": 1})
    by_uri = {row["uri"]: row["label"] for row in frame_of(tmp_path / "t").iter_rows(named=True)}
    assert {by_uri[f"file://{path}"]: number for number, path in enumerate(paths)} == {f"class {n}": n for n in range(8)}
    again = extract(tmp_path / "labels.csv", tmp_path / "t", "--source.labels", "label")
    assert (again["unchanged"], again["new"], again["changed"]) == (9, 0, 0)


def test_a_listing_stands_in_for_listing(tmp_path: Path) -> None:
    """Nothing but what it names is touched; what it names and is gone gets a row, until the store itself lists it again."""
    paths = write_photos(tmp_path / "photos", 6)
    listing = tmp_path / "listing.csv"

    def run(*more: str) -> dict:
        return extract(tmp_path / "photos", tmp_path / "t", "--max-failed-fraction", "1", *more)

    def etag(path: Path) -> str:
        return f"{path.stat().st_size}-{path.stat().st_mtime_ns}"

    listing.write_text("uri,etag\n" + "".join(f"{path},{etag(path)}\n" for path in paths[:4]))
    paths[1].rename(tmp_path / "away.jpg")
    taken = run("--source.listing", str(listing))
    assert (taken["listed"], taken["new"], taken["failures"]) == (4, 4, {"not_found": 1})
    again = run("--source.listing", str(listing))
    assert (again["unchanged"], again["new"], again["changed"]) == (4, 0, 0)
    (tmp_path / "away.jpg").rename(paths[1])
    cats = run("--source.keys-from", "cat", "--source.keys-to", "dog")
    assert (cats["listed"], cats["new"], cats["changed"], cats["deleted"]) == (3, 1, 1, 0)
    everything = run()
    assert (everything["listed"], everything["new"], everything["changed"], everything["failed"]) == (6, 1, 0, 0)
    listing.write_text(f"{paths[0]}\n{paths[1]}\n")
    fewer = run("--source.listing", str(listing.rename(tmp_path / "listing.txt")), "--source.keys-to", "dog")
    assert (fewer["listed"], fewer["unchanged"], fewer["deleted"]) == (1, 1, 2)
    assert frame_of(tmp_path / "t")["uri"].to_list() == sorted(f"file://{paths[number]}" for number in (0, 1, 2, 4))


def test_a_range_that_became_empty_takes_its_rows_with_it(tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos", 6)
    cats = ("--source.keys-from", "cat", "--source.keys-to", "dog")
    source = ("--source.uri", tmp_path / "photos", "--source.keys-from", "x")
    none = error_of(tlray("extract", "--local", *source, "--table", tmp_path / "t", *RECIPE))
    assert "source.keys_from" in none and not (tmp_path / "t").exists()
    extract(tmp_path / "photos", tmp_path / "t")
    left = [path for path in paths if path.parent.name != "cat"]
    shutil.rmtree(tmp_path / "photos" / "cat")
    result = extract(tmp_path / "photos", tmp_path / "t", *cats)
    assert (result["listed"], result["deleted"]) == (0, 6 - len(left))
    assert frame_of(tmp_path / "t")["uri"].to_list() == sorted(f"file://{path}" for path in left)
    listing = tmp_path / "listing.txt"
    listing.write_text(f"{left[-1]}\n")
    last = extract(tmp_path / "photos", tmp_path / "t", *cats, "--source.listing", str(listing))
    assert (last["listed"], last["deleted"]) == (0, 0)


def test_tar_shards_and_parquet_give_the_same_vectors_as_files(tmp_path: Path) -> None:
    paths = sorted(write_photos(tmp_path / "photos", 12), key=lambda path: path.name)
    (tmp_path / "tars").mkdir()
    for shard in range(3):
        with tarfile.open(tmp_path / "tars" / f"shard-{shard:03d}.tar", "w") as tar:
            for path in paths[shard * 4 : shard * 4 + 4]:
                for name, data in ((path.name, path.read_bytes()), (path.stem + ".cls", path.parent.name.encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    images = [{"image": {"bytes": path.read_bytes(), "path": path.name}, "label": path.parent.name} for path in paths]
    (tmp_path / "parquet").mkdir()
    pl.DataFrame(images).write_parquet(tmp_path / "parquet" / "train-00000.parquet", row_group_size=5)
    extract(tmp_path / "photos", tmp_path / "t1", "--source.labels", "folder")
    tars = extract(tmp_path / "tars", tmp_path / "t2", "--source.labels", "cls")
    rows = extract(tmp_path / "parquet", tmp_path / "t3", "--source.labels", "label")
    assert (tars["listed"], tars["ok"], rows["listed"], rows["ok"]) == (3, 12, 1, 12)
    expected = frame_of(tmp_path / "t1").with_columns(name=pl.col("uri").str.split("/").list.last()).sort("name")
    from_tars = frame_of(tmp_path / "t2").with_columns(name=pl.col("uri").str.split("#").list.last()).sort("name")
    from_rows = frame_of(tmp_path / "t3").with_columns(at=pl.col("uri").str.split("#").list.last().cast(int)).sort("at")
    for other in (from_tars, from_rows):
        assert other["label"].to_list() == expected["label"].to_list()
        assert np.allclose(
            np.array(other["embedding"].to_list()), np.array(expected["embedding"].to_list()), rtol=2e-3, atol=1e-5
        )
    for source, table, kind in (("tars", "t2", "cls"), ("parquet", "t3", "label")):
        again = extract(tmp_path / source, tmp_path / table, "--source.labels", kind)
        assert (again["new"], again["changed"], again["deleted"], again["ok"]) == (0, 0, 0, 0)


def test_several_taps_are_several_columns(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3)
    taps = ["--recipe.taps", "layer4", "--recipe.taps", "layer2", "--recipe.pool", "max", "--recipe.normalize"]
    extract(tmp_path / "photos", tmp_path / "t", *taps)
    frame = frame_of(tmp_path / "t")
    assert {column for column in frame.columns if column.startswith("embedding")} == {"embedding_layer4", "embedding_layer2"}
    assert np.allclose(np.linalg.norm(np.array(frame["embedding_layer4"].to_list()), axis=1), 1, atol=1e-3)


def test_small_parts_that_cannot_be_joined_do_not_fail_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise StorageError("the store is away")

    write_photos(tmp_path / "photos", 3)
    monkeypatch.setattr("tlray.extraction.run.run.optimize", away)
    outcome = tlray("extract", "--local", tmp_path / "photos", tmp_path / "t", *RECIPE)
    assert result_of(outcome)["ok"] == 3 and len(frame_of(tmp_path / "t")) == 3
    assert "small parts stay as they are until the next run: the store is away" in outcome.stderr


def test_a_dry_run_writes_nothing_and_estimates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_photos(tmp_path / "photos", 50)
    monkeypatch.setattr(sample, "perf_counter", iter([100.0, 103.2]).__next__)  # around 32 of them
    result = extract(tmp_path / "photos", tmp_path / "t", "--dry-run")
    assert (result["listed"], result["new"], result["units"]) == (50, 50, 2)
    assert result["todo_bytes"] == sum(path.stat().st_size for path in paths)
    assert result["estimated_seconds"] - result["start_seconds"] == pytest.approx(5.0)
    assert result["sample"] == {"images": 32, "failed": 0, "failures": {}}
    assert not (tmp_path / "t").exists()


def test_a_dry_run_tells_what_fails_and_what_it_does_not_know(tmp_path: Path) -> None:
    manifest = tmp_path / "train.csv"
    for number in range(40):
        (tmp_path / f"bad{number}.jpg").write_bytes(b"no picture")
    manifest.write_text("filename\n" + "".join(f"bad{number}.jpg\n" for number in range(40)))
    run = ["extract", "--local", "--source.uri", manifest, "--table", tmp_path / "t", *RECIPE, "--dry-run"]
    outcome = tlray(*run)
    result = result_of(outcome)
    assert result["sample"] == {"images": 32, "failed": 32, "failures": {"not_an_image": 32}}
    assert result["estimated_seconds"] is None and result["todo_bytes"] is None
    assert "of 32 images that were tried 32 failed (32 not_an_image)" in outcome.stderr and "no estimate" in outcome.stderr
    good = write_photos(tmp_path / "photos", 10)
    manifest.write_text("filename\nnone.jpg\n" + "".join(f"{path}\n" for path in good))
    outcome = tlray(*run)
    assert result_of(outcome)["sample"] == {"images": 11, "failed": 1, "failures": {"not_found": 1}}
    assert "estimated 0 s" not in outcome.stderr and "to start" in outcome.stderr
    assert result_of(outcome)["estimated_seconds"] > result_of(outcome)["start_seconds"] > 0
    outcome = tlray(*run[:-1], "--max-failed-fraction", "0.1")
    assert "11 to embed in 1 unit, of unknown size" in outcome.stderr


def test_the_recipe_file_holds_golden_vectors(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    result = extract(tmp_path / "photos", tmp_path / "t")
    document = json.loads((tmp_path / "t" / "recipe.json").read_text())
    assert document["recipe_id"] == result["recipe_id"]
    assert document["recipe"]["weights"] == "random:7"
    document["golden"]["embedding"] = [row[::-1] for row in document["golden"]["embedding"]]
    (tmp_path / "t" / "recipe.json").write_text(json.dumps(document))
    write_photos(tmp_path / "photos", 2, first=10)
    process = tlray("extract", "--local", "--source.uri", tmp_path / "photos", "--table", tmp_path / "t", *RECIPE)
    message = error_of(process, 1)
    assert "GoldenMismatchError" in message and "least cosine" in message
    assert len(frame_of(tmp_path / "t")) == 2
