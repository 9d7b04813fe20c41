"""Texts and word vectors in a bucket, and units on Ray's workers: the same table as on this machine alone."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.photos import frame_of, result_of, s3_options, tlray
from tests.ray_cluster import RayCluster
from tests.texts.documents import documents, source_in
from tlray.lake.storage.open import open_store


def test_a_bucket_holds_all_of_it(folder: Path, tmp_path: Path, s3_bucket: str) -> None:
    rows = documents()[:400]
    pl.DataFrame({"body": [text for _, text, _ in rows], "topic": [topic for *_, topic in rows]}).write_parquet(
        tmp_path / "x.parquet"
    )
    for name, path in (("x.parquet", tmp_path / "x.parquet"), ("models/w.bin", folder / "w.bin")):
        open_store(s3_bucket).write(f"{s3_bucket}/{name}", path.read_bytes())
    more = ["--source.text", "body", "--source.labels", "topic", "--recipe.precision.storage", "full"]
    for source, vectors, table in (
        (tmp_path / "x.parquet", str(folder / "w.bin"), str(tmp_path / "t")),
        (f"{s3_bucket}/x.parquet", f"{s3_bucket}/models/w.bin", f"{s3_bucket}/t"),
    ):
        arguments = ["--source.uri", source, "--table", table, "--recipe.backbone", f"gensim:{vectors}"]
        assert result_of(tlray("extract", "--local", *arguments, *more))["ok"] == 400
    here, there = frame_of(tmp_path / "t"), frame_of(f"{s3_bucket}/t", s3_options())
    order = [frame["uri"].str.extract(r"#(\d+)$").cast(int).arg_sort() for frame in (here, there)]
    for column in ("text", "label", "etag", "unknown_fraction"):
        assert here[column].gather(order[0]).equals(there[column].gather(order[1]))
    vectors = [np.array(frame["embedding"].gather(at).to_list()) for frame, at in zip((here, there), order, strict=True)]
    np.testing.assert_array_equal(*vectors)


@pytest.mark.ray
def test_rays_workers_make_the_same_table(
    folder: Path, tmp_path: Path, ray_cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.address)
    recipe = ["--recipe.backbone", f"gensim:{folder / 'w.bin'}", "--recipe.precision.storage", "full"]
    for where in ("--local", "--no-local"):
        result_of(tlray("extract", where, *source_in(folder), "--table", tmp_path / where, *recipe))
    here, there = (frame_of(tmp_path / where).sort("uri") for where in ("--local", "--no-local"))
    assert len(here) == len(documents())
    assert here.drop("etag").equals(there.drop("etag"), null_equal=True)
