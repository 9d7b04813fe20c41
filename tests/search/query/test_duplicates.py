"""Groups of near-duplicates, held against brute force."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.photos import error_of, result_of, tlray
from tests.search.tables import Bench, exact, rows_for
from tlray.lake.table.parts import vector_column
from tlray.scoring import connected_components


def planted(bench: Bench) -> None:
    """300 rows; 10 of train/ come again below test/ with a little noise, one of them 30 times, two with other labels."""
    rng = np.random.default_rng(0)
    vectors_ND = rng.standard_normal((300, bench.dimensions)).astype(np.float32)
    copies_BD = vectors_ND[np.r_[np.arange(10), np.zeros(29, int)]]
    copies_BD = copies_BD + 0.01 * rng.standard_normal(copies_BD.shape).astype(np.float32)
    first = (
        rows_for(range(300)).set_column(2, "label", [["x"] * 300]).set_column(5, "embedding", vector_column(vectors_ND, "full"))
    )
    labels = ["y" if at in (3, 4) else "x" for at in range(39)]
    second = rows_for(range(1000, 1039), folder="test").set_column(2, "label", [labels])
    bench.commit([first, second.set_column(5, "embedding", vector_column(copies_BD, "full"))])


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF8,SQ4"])
def test_groups_leaks_and_label_conflicts(factory: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    planted(bench)
    bench.index(factory=factory, recall_target=0.99, rerank="always")
    arguments = ["--splits", "file:///photos/train/", "--splits", "file:///photos/test/", "--out", tmp_path / "groups.parquet"]
    result = result_of(tlray("duplicates", "--index", bench.index_path, "--cosine", "0.98", *arguments))
    _, vectors_ND = bench.all()
    _, cosines_BN = exact(vectors_ND, vectors_ND, len(vectors_ND))
    assert result["pairs"] == ((cosines_BN >= 0.98).sum() - len(vectors_ND)) // 2
    assert (result["groups"], result["leaks"], result["label_conflicts"]) == (10, 10, 2)
    assert result["rows_in_groups"] == 49
    sizes = sorted(group["size"] for group in result["first"])
    assert sizes == [2] * 9 + [31]
    frame = pl.read_parquet(tmp_path / "groups.parquet")
    assert len(frame) == 49 and frame["group"].n_unique() == 10 and frame["split"].null_count() == 0


def test_other_metrics_are_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fill(20)
    bench.index(metric="l2")
    assert "--metric cosine" in error_of(tlray("duplicates", "--index", bench.index_path))


def test_connected_components_of_random_graphs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        count = int(rng.integers(1, 60))
        pairs = rng.integers(0, count, (int(rng.integers(0, 60)), 2))
        group = list(range(count))
        for first, second in pairs.tolist():
            old, new = group[first], group[second]
            group = [new if one == old else one for one in group]
        least = [group.index(one) for one in group]
        assert connected_components(count, pairs[:, 0], pairs[:, 1]).tolist() == least
