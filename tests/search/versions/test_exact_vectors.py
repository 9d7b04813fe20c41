"""What is done with many vectors at once, held against plain NumPy."""

from pathlib import Path

import numpy as np
import pytest

from tlray.errors import TableCorruptError
from tlray.search.build.sample import leaving_out
from tlray.search.neighbours.exact import Metric, nearness_at
from tlray.search.versions.exact_vectors import save_vectors


@pytest.mark.parametrize("left_out", [[0], [9], [0, 1, 2], [3, 4, 8, 9], [0, 5, 9], list(range(9))])
def test_rows_are_left_out_and_come_back(left_out: list[int]) -> None:
    given_ND = np.arange(40, dtype=np.float32).reshape(10, 4)
    vectors_ND = given_ND.copy()
    with leaving_out(vectors_ND, np.array(left_out)) as others_MD:
        np.testing.assert_array_equal(others_MD, np.delete(given_ND, left_out, axis=0))
        assert others_MD.base is vectors_ND
    np.testing.assert_array_equal(vectors_ND, given_ND)
    with pytest.raises(RuntimeError), leaving_out(vectors_ND, np.array(left_out)):
        raise RuntimeError
    np.testing.assert_array_equal(vectors_ND, given_ND)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_nearness_by_position(metric: Metric) -> None:
    queries_BD, vectors_ND = np.split(np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32), [2])
    if metric == "cosine":
        queries_BD = queries_BD / np.linalg.norm(queries_BD, axis=1, keepdims=True)
        vectors_ND = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    at_BC = np.array([[3, -1, 9], [-1, -1, 0]])
    given_BCD = vectors_ND[at_BC]
    wanted_BC = (
        -((queries_BD[:, None] - given_BCD) ** 2).sum(axis=2)
        if metric == "l2"
        else (queries_BD[:, None] * given_BCD).sum(axis=2)
    )
    np.testing.assert_allclose(
        nearness_at(queries_BD, vectors_ND, at_BC, metric), np.where(at_BC < 0, -np.inf, wanted_BC), rtol=1e-5
    )


def test_vectors_are_kept_as_numpy_reads_them_and_only_as_many_as_were_said(tmp_path: Path) -> None:
    vectors_ND = np.random.default_rng(0).standard_normal((10, 3))
    path = tmp_path / "vectors.npy"
    save_vectors(path, [vectors_ND[:4], vectors_ND[4:].astype(np.float32)], (10, 3))
    kept_ND = np.load(path, mmap_mode="r")
    assert kept_ND.dtype == np.float32
    np.testing.assert_array_equal(kept_ND, vectors_ND.astype(np.float32))
    for blocks in ([vectors_ND[:9]], [vectors_ND, vectors_ND[:1]], [vectors_ND[:, :2]]):
        with pytest.raises(TableCorruptError):
            save_vectors(path, blocks, (10, 3))
