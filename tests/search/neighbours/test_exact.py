"""Exact comparison, against NumPy in float64."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from tlray.search.neighbours.exact import Metric, exact_neighbours, prepare, prepared
from tlray.search.neighbours.faiss_index import FaissIndex
from tlray.search.neighbours.parameters import Parameters


def scores(queries_BD: np.ndarray, vectors_ND: np.ndarray, metric: Metric) -> np.ndarray:
    queries_BD, vectors_ND = queries_BD.astype(np.float64), vectors_ND.astype(np.float64)
    if metric == "cosine":
        return cosine_similarity(queries_BD, vectors_ND)
    if metric == "ip":
        return queries_BD @ vectors_ND.T
    return -((queries_BD[:, None] - vectors_ND[None]) ** 2).sum(axis=2)


@pytest.mark.parametrize("scale", [1e-25, 1e-18, 1e-3, 1, 1e3, 1e18, 1e25])
def test_vectors_of_any_length_become_unit_vectors(scale: float) -> None:
    given_BD = np.random.default_rng(0).standard_normal((50, 32)).astype(np.float32)
    unit_BD = prepared(given_BD * np.float32(scale), "cosine")
    np.testing.assert_allclose(unit_BD, given_BD / np.linalg.norm(given_BD, axis=1, keepdims=True), rtol=1e-5, atol=1e-7)
    assert prepared(given_BD, "l2") is given_BD


def test_only_vectors_of_nothing_but_zeros_have_no_direction() -> None:
    vectors_BD = np.zeros((6, 8), np.float32)
    vectors_BD[1, 3], vectors_BD[2, 7], vectors_BD[3, 0] = 1e-30, -1, 3e38
    vectors_BD[4] = -0.0
    copy_BD = vectors_BD.copy()
    assert prepare(vectors_BD, "cosine").tolist() == [True, False, False, False, True, True]
    assert np.linalg.norm(vectors_BD, axis=1).tolist() == [0, 1, 1, 1, 0, 0]
    assert not prepare(copy_BD, "l2").any()


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("offset", [0, 100])
@pytest.mark.parametrize("queries", [3, 19, 20, 200])
def test_answers_to_many_queries_are_as_exact_as_those_to_one(metric: Metric, offset: float, queries: int) -> None:
    """By matrix products, which FAISS takes from 20 queries on, distances of vectors far from the origin lose their digits."""
    rng = np.random.default_rng(0)
    vectors_ND = (offset + 0.1 * rng.standard_normal((3000, 64))).astype(np.float32)
    queries_BD = (vectors_ND[:queries] + 0.01 * rng.standard_normal((queries, 64))).astype(np.float32)
    vectors_ND, queries_BD = prepared(vectors_ND, metric), prepared(queries_BD, metric)
    index = FaissIndex.make("Flat", 64, metric)
    index.add(vectors_ND, 0)
    blocks = [(np.arange(1000), vectors_ND[:1000]), (np.arange(1000, 3000), vectors_ND[1000:])]
    wanted_BN = scores(queries_BD, vectors_ND, metric)
    for ids_BK, nearness_BK in (
        index.search(queries_BD, 10, Parameters()),
        exact_neighbours(queries_BD, blocks, 10, metric),
    ):
        found_BK = np.take_along_axis(wanted_BN, ids_BK, axis=1)
        slack = 1e-6 * np.abs(wanted_BN).max() if metric == "ip" else 1e-6 if metric == "cosine" else 1e-4 * -found_BK
        np.testing.assert_array_less(-slack, nearness_BK - found_BK + 1e-12)
        np.testing.assert_array_less(nearness_BK - found_BK - 1e-12, slack)
        last_B = np.sort(wanted_BN, axis=1)[:, -10]
        assert (found_BK[:, -1] >= last_B - np.broadcast_to(slack, found_BK.shape)[:, -1]).all()


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF4,Flat"])
def test_a_vector_has_a_cosine_of_exactly_one_to_itself(factory: str) -> None:
    vectors_ND = prepared(np.random.default_rng(0).standard_normal((500, 128)), "cosine")
    index = FaissIndex.make(factory, 128, "cosine")
    if not index.is_trained:
        index.train(vectors_ND)
    index.add(vectors_ND, 0)
    ids_B1, nearness_B1 = index.search(vectors_ND, 1, Parameters(nprobe=4, ef_search=64))
    assert (ids_B1[:, 0] == np.arange(500)).all() and (nearness_B1 == 1).all()
