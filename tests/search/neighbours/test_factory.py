"""Which index is chosen, against the sources' own thresholds; every choice is one that FAISS makes and that fits."""

import re

import faiss
import pytest

from tlray.errors import ConfigError
from tlray.search.neighbours.factory import choose, training_rows

GIB = 2**30


@pytest.mark.parametrize(
    ("rows", "dimensions", "memory_bytes", "target", "metric", "factory"),
    [
        (9_999, 512, GIB, 0.95, "cosine", "Flat"),
        (5_000_000, 128, 100 * GIB, 1.0, "cosine", "Flat"),
        (10_000, 512, GIB, 0.95, "cosine", "HNSW32"),
        (100_000, 512, 100_000 * (2048 + 8 * 12), 0.95, "l2", "HNSW12"),
        (100_000, 512, 100_000 * (2048 + 8 * 7), 0.95, "cosine", "IVF1024,Flat"),
        (5_000_000, 128, 5_000_000 * 530, 0.95, "cosine", "IVF16384_HNSW32,Flat"),
        (100_000, 512, 100_000 * 300, 0.95, "cosine", "OPQ256_512,IVF1024,PQ256"),
        (100_000, 512, 100_000 * 80, 0.95, "ip", "OPQ64_256,IVF1024,PQ64"),
        (400_000_000, 768, 30 * GIB, 0.9, "cosine", "OPQ64_256,IVF131072_HNSW32,PQ64"),
        (50_000, 25_088, GIB, 0.95, "cosine", "PCA512,HNSW32"),
        (50_000, 25_088, GIB, 0.95, "ip", "OPQ256_1024,IVF1024,PQ256"),
    ],
)
def test_the_choice(rows: int, dimensions: int, memory_bytes: int, target: float, metric: str, factory: str) -> None:
    choice = choose(rows, dimensions, memory_bytes, target, metric)
    assert choice.factory == factory
    assert choice.reasons
    made = faiss.index_factory(dimensions, re.sub(r"IVF\d+(_HNSW32)?", "IVF4", choice.factory), faiss.METRIC_L2)
    assert made.d == dimensions


def test_whatever_fits_no_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match="do not fit"):
        choose(1_000_000, 512, 1_000_000, 0.95)
    with pytest.raises(ConfigError, match="exact index"):
        choose(1_000_000, 512, GIB, 1.0)


@pytest.mark.parametrize("rows", [10_000, 30_000, 100_000, 500_000, 999_999])
def test_lists_are_within_what_the_wiki_says(rows: int) -> None:
    factory = choose(rows, 512, rows * (2048 + 8), 0.95).factory
    (lists,) = re.findall(r"^IVF(\d+),Flat$", factory)
    assert 4 * rows**0.5 / 1.5 <= int(lists) <= 16 * rows**0.5
    assert 30 * int(lists) <= training_rows(factory, 10**9, 512) <= 256 * int(lists)


def test_training_rows_are_as_many_as_the_parts_need() -> None:
    assert training_rows("Flat", 10**6, 512) == training_rows("HNSW32", 10**6, 512) == 0
    assert training_rows("OPQ16_64,IVF256,PQ16", 10**6, 128) == 65_536
    assert training_rows("PCA512,HNSW32", 10**6, 25_088) == 250_880
    assert training_rows("IVF1024,Flat", 5_000, 128) == 5_000
