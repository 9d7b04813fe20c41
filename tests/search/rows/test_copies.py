"""Which rows share a vector, against NumPy's comparison of whole vectors."""

import numpy as np
import pytest

from tlray.search.rows.copies import NO_NODE, digests_of, keys_of, nodes_of


@pytest.mark.parametrize("dimensions", [1, 2, 7, 32, 513])
def test_keys_and_digests_are_equal_where_vectors_are(dimensions: int) -> None:
    rng = np.random.default_rng(0)
    distinct = rng.standard_normal((300, dimensions)).astype(np.float32)
    at = rng.integers(0, 300, 1000)
    vectors_ND = distinct[at]
    for numbers in (keys_of(vectors_ND), digests_of(vectors_ND)):
        assert len(np.unique(numbers)) == len(np.unique(at))
        first = {}
        assert all(first.setdefault(row, number) == number for row, number in zip(at, numbers.tolist(), strict=True))
    assert (keys_of(vectors_ND[::-1].copy()) == keys_of(vectors_ND)[::-1]).all()


def test_the_order_of_a_vectors_floats_matters() -> None:
    vector = np.arange(8, dtype=np.float32)
    assert len(np.unique(keys_of(np.stack([np.roll(vector, by) for by in range(8)])))) == 8


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("collide", [False, True])
def test_nodes_are_numbered_by_their_first_rows(seed: int, collide: bool) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 60))
    vectors_ND = rng.integers(0, 3, (count, 2)).astype(np.float32)
    is_zero_N = ~vectors_ND.any(axis=1)
    asked: list[int] = []

    def digests(at_M: np.ndarray) -> np.ndarray:
        asked.extend(at_M.tolist())
        return digests_of(vectors_ND[at_M])

    keys = np.zeros(count, np.uint64) if collide else keys_of(vectors_ND)  # equal keys alone make no copies
    nodes = nodes_of(keys, is_zero_N, digests)

    number_of: dict[tuple[float, ...], int] = {}
    expected, firsts = [], []
    for at, vector in enumerate(map(tuple, vectors_ND.tolist())):
        if any(vector) and vector not in number_of:
            number_of[vector] = len(number_of)
            firsts.append(at)
        expected.append(number_of.get(vector, NO_NODE))
    assert nodes.of_row_N.tolist() == expected and nodes.first_row_U.tolist() == firsts
    assert asked == sorted(set(asked)) and not is_zero_N[asked].any()


def test_vectors_without_equal_keys_are_not_looked_at_again() -> None:
    vectors_ND = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    nodes = nodes_of(keys_of(vectors_ND), np.zeros(50, bool), lambda at_M: pytest.fail(f"asked for {at_M}"))
    assert nodes.of_row_N.tolist() == list(range(50))
