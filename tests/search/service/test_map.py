"""The map of a collection: at once by principal components, and by UMAP when that is ready; here a stand-in for it, as its
compiler takes 20 s."""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.search.service.serving import Client, serving
from tests.search.tables import Bench
from tlray.search.service.backend.map.layout import principal_components, umap_places

UMAP = """
import time
from pathlib import Path
import numpy as np

class UMAP:
    def __init__(self, **given):
        assert given["random_state"] is not None

    def fit_transform(self, reduced):
        assert reduced.shape == (500, 50)
        print("libraries print")
        while not Path({go!r}).exists():
            time.sleep(0.02)
        assert Path({go!r}).read_text() == "well", "it did not converge"
        return np.stack([np.arange(500.0), np.zeros(500)], axis=1)
"""


def test_principal_components_are_those_of_the_exact_decomposition() -> None:
    rng = np.random.default_rng(0)
    for rows, dimensions, scale in ((300, 40, 1.0), (40, 300, 1.0), (300, 40, 1e25), (3, 40, 1.0)):
        vectors_ND = (rng.standard_normal((rows, dimensions)) * np.geomspace(10, 0.1, dimensions) * scale).astype(np.float32)
        vectors_ND += np.float32(3 * scale)
        centred_ND = vectors_ND.astype(np.float64) - vectors_ND.astype(np.float64).mean(axis=0)
        left_NR, sizes_R, _ = np.linalg.svd(centred_ND, full_matrices=False)
        expected_N2, found_N2 = (left_NR * sizes_R)[:, :2], principal_components(vectors_ND, 2)
        signs_2 = np.sign((expected_N2 * found_N2).sum(axis=0))
        np.testing.assert_allclose(found_N2, expected_N2 * signs_2, atol=2e-3 * np.abs(expected_N2).max())
    assert principal_components(np.ones((1, 8), np.float32), 2).tolist() == [[0, 0]]
    assert principal_components(np.ones((5, 1), np.float32), 2).shape == (5, 2)
    assert principal_components(np.empty((0, 8), np.float32), 2).shape == (0, 2)


def test_a_layout_keeps_clusters_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    centres_CD = 6 * rng.standard_normal((8, 64))
    labels_N = np.arange(400) % 8
    vectors_ND = (centres_CD[labels_N] + rng.standard_normal((400, 64))).astype(np.float32)

    class Umap:
        def __init__(self, **given: object) -> None:
            assert given["random_state"] is not None  # the same map every time

        def fit_transform(self, reduced_ND: np.ndarray) -> np.ndarray:
            # What UMAP is given still has the neighbours.
            squared_NN = ((reduced_ND[:, None] - reduced_ND[None]) ** 2).sum(axis=2) + np.diag(np.full(400, np.inf))
            assert (labels_N[squared_NN.argmin(axis=1)] == labels_N).all()
            return 7 + np.stack([labels_N % 3, labels_N // 3], axis=1) + 0.1 * rng.standard_normal((400, 2))

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Umap))
    for places_N2, least in ((principal_components(vectors_ND, 2), 0.6), (umap_places(vectors_ND), 0.95)):
        assert places_N2.shape == (400, 2)
        squared_NN = ((places_N2[:, None] - places_N2[None]) ** 2).sum(axis=2) + np.diag(np.full(400, np.inf))
        assert (labels_N[squared_NN.argmin(axis=1)] == labels_N).mean() >= least
    assert np.abs(umap_places(vectors_ND)).max() == pytest.approx(1)


@pytest.mark.parametrize("end", ["well", "badly"])
def test_a_map_is_there_at_once_and_improves(end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = tmp_path / "go"
    (tmp_path / "umap.py").write_text(UMAP.format(go=str(go)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "umap", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), str(Path.cwd())]))
    bench = Bench(tmp_path, dimensions=64)
    bench.fill(500)
    bench.index(factory="Flat")
    with serving(bench.index_path, images=False) as (client, _):
        first = client.json("GET", "/api/map")
        assert (first["layout"], first["improving"]) == ("principal components", True)
        go.write_text(end)
        last = improved(client)
        assert last["layout"] == ("UMAP" if end == "well" else "principal components")
        assert [point["id"] for point in last["points"]] == [point["id"] for point in first["points"]]
        if end == "well":
            assert sorted(point["x"] for point in last["points"]) == [point["x"] for point in last["points"]]
        else:
            assert last["points"] == first["points"]


def improved(client: Client) -> dict:
    deadline = time.monotonic() + 300
    while (answer := client.json("GET", "/api/map"))["improving"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return answer


def test_a_map_that_improves_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "umap.py").write_text(UMAP.format(go=str(tmp_path / "never")))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), str(Path.cwd())]))
    bench = Bench(tmp_path, dimensions=64)
    bench.fill(500)
    bench.index(factory="Flat")
    with serving(bench.index_path, images=False) as (client, _):
        assert client.json("GET", "/api/map")["improving"]
        began = time.monotonic()
    assert time.monotonic() - began < 60
