"""What is said of a kind of index, against FAISS's own index of that kind."""

import faiss
import numpy as np
import pytest

from tlray.errors import ConfigError
from tlray.search.neighbours.faiss_index import FaissIndex
from tlray.search.neighbours.index_kind import kind_made_by

KINDS = [
    # factory, lists, graph, transformed
    ("Flat", 0, False, False),
    ("HNSW8", 0, True, False),
    ("HNSW8_SQ8", 0, True, False),
    ("IVF8,Flat", 8, False, False),
    ("IVF8,SQ8", 8, False, False),
    ("IVF8_HNSW8,PQ4x4", 8, False, False),
    ("PCA8,Flat", 0, False, True),
    ("PCA8,HNSW8", 0, True, True),
    ("SQ8", 0, False, False),
    ("PQ4x4", 0, False, False),
]


@pytest.mark.parametrize(("factory", "lists", "is_graph", "is_transformed"), KINDS)
def test_a_kind_is_what_faiss_makes(factory: str, lists: int, is_graph: bool, is_transformed: bool) -> None:
    kind, made = kind_made_by(factory, 16, "cosine"), faiss.index_factory(16, factory)
    assert kind.trains == (not made.is_trained)
    assert (kind.lists, kind.is_graph, kind.is_transformed) == (lists, is_graph, is_transformed)
    vectors_ND = np.random.default_rng(0).standard_normal((800, 16)).astype(np.float32)
    index = FaissIndex.make(factory, 16, "l2")
    if kind.trains:
        index.train(vectors_ND)
    index.add(vectors_ND, 0)
    index.remove(np.arange(10))
    assert index.total == (790 if kind.removes else 800)
    if kind.is_exact:
        np.testing.assert_array_equal(index.vectors(np.array([700, 20])), vectors_ND[[700, 20]])
    assert (index.reconstruction_error(vectors_ND[20:40], np.arange(20, 40)) == 0) == kind.is_exact


def test_too_few_vectors_for_a_factory_are_refused_by_name() -> None:
    index = FaissIndex.make("IVF64,Flat", 8, "l2")
    with pytest.raises(ConfigError, match="cannot be trained on 10 vectors"):
        index.train(np.ones((10, 8), np.float32))
