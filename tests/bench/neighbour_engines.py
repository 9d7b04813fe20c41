"""The engines of `tests.bench.neighbours`: how each builds, and how it searches at a width (efSearch, nprobe)."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from tests.bench.index import bare
from tlray.config import IndexConfig
from tlray.search.build.build_index import index
from tlray.search.neighbours.parameters import Parameters
from tlray.search.query.searcher import Searcher
from tlray.search.versions.card import read_card
from tlray.search.versions.load import load_index

K = 10
LINKS, FAISS_EFFORT = 32, 40
"""Of FAISS's HNSW32, without being told."""

HNSWLIB = 16, 200
"""Links and effort of hnswlib without being told."""

CORES = os.cpu_count() or 1

Search = Callable[[np.ndarray, int], np.ndarray]
"""Queries_BD and a width to the numbers of K rows each, as `numbers_of` the engine reads them."""


@dataclass(frozen=True)
class Engine:
    """A way to find neighbours.

    Attributes:
        build: from a folder with the vectors and the table, and a path to write to, to what its result says of it.
        open: from that path to a search.
        packages: that it needs beside ours.
    """

    build: Callable[[Path, Path], dict[str, Any]]
    open: Callable[[Path], Search]
    packages: tuple[str, ...] = ()


def vectors_in(folder: Path) -> np.ndarray:
    return np.load(folder / "vectors.npy", mmap_mode="r")


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def build_ours(factory: str, folder: Path, path: Path, effort: int | None = None) -> dict[str, Any]:
    config = IndexConfig(table=str(folder / "table"), out=str(path), factory=factory, ef_construction=effort)
    taken = timed(lambda: index(config))
    card = read_card(f"file://{path}")
    return {"build_seconds": taken, "calls_seconds": card.seconds.get("train", 0) + card.seconds["add"]}


def open_ours(path: Path) -> Search:
    """The searcher of our service, at any width."""
    uri = f"file://{path}"
    loaded = load_index(uri, read_card(uri), path)
    number_of = np.array([int(one[-12:-4]) for one in loaded.rows.table["uri"].to_pylist()])
    searchers: dict[int, Searcher] = {}

    def at_width(width: int) -> Searcher:
        parameters = Parameters(nprobe=width) if loaded.index.kind.lists else Parameters(ef_search=width)
        return Searcher(replace(loaded, card=loaded.card.model_copy(update={"parameters": parameters})))

    def search(queries_BD: np.ndarray, width: int) -> np.ndarray:
        if width not in searchers:
            searchers[width] = at_width(width)
        return number_of[searchers[width].search(queries_BD, K).positions_BK]

    return search


def build_faiss(factory: str, folder: Path, path: Path) -> dict[str, Any]:
    made, seconds = bare(factory, vectors_in(folder), folder)
    del made
    (written,) = folder.glob("bare-*.faiss")
    written.rename(path)
    return {"build_seconds": sum(seconds.values()), "calls_seconds": seconds["train"] + seconds["add"]}


def open_faiss(path: Path) -> Search:
    made = faiss.read_index(str(path))
    name = "nprobe" if isinstance(made, faiss.IndexIVF) else "efSearch"
    space = faiss.ParameterSpace()

    def search(queries_BD: np.ndarray, width: int) -> np.ndarray:
        space.set_index_parameter(made, name, width)
        return made.search(queries_BD, K)[1]

    return search


def build_hnswlib(links: int, effort: int, folder: Path, path: Path) -> dict[str, Any]:
    import hnswlib

    vectors_ND = vectors_in(folder)
    made = hnswlib.Index(space="l2", dim=vectors_ND.shape[1])

    def add() -> None:
        made.init_index(max_elements=len(vectors_ND), M=links, ef_construction=effort)
        made.add_items(vectors_ND, num_threads=CORES)

    calls = timed(add)
    return {"build_seconds": calls + timed(lambda: made.save_index(str(path))), "calls_seconds": calls}


def open_hnswlib(path: Path) -> Search:
    import hnswlib

    made = hnswlib.Index(space="l2", dim=np.load(path.with_name("queries.npy"), mmap_mode="r").shape[1])
    made.load_index(str(path))

    def search(queries_BD: np.ndarray, width: int) -> np.ndarray:
        made.set_ef(width)
        return made.knn_query(queries_BD, k=K, num_threads=CORES)[0].astype(np.int64)

    return search


def build_usearch(links: int, effort: int, folder: Path, path: Path) -> dict[str, Any]:
    from usearch.index import Index

    vectors_ND = vectors_in(folder)
    made = Index(ndim=vectors_ND.shape[1], metric="l2sq", dtype="f32", connectivity=links, expansion_add=effort)
    calls = timed(lambda: made.add(np.arange(len(vectors_ND)), vectors_ND, threads=CORES))
    return {"build_seconds": calls + timed(lambda: made.save(str(path))), "calls_seconds": calls}


def open_usearch(path: Path) -> Search:
    from usearch.index import Index

    made = Index.restore(str(path))

    def search(queries_BD: np.ndarray, width: int) -> np.ndarray:
        made.expansion_search = width
        return made.search(queries_BD, K, threads=CORES).keys.astype(np.int64)

    return search


def engines(rows: int) -> dict[str, Engine]:
    """All engines by name; inverted lists as many as `tlray index` takes for so many rows, as a power of 2."""
    lists = 2 ** round(np.log2(4 * np.sqrt(rows)))
    graph, inverted = f"HNSW{LINKS}", f"IVF{lists},Flat"
    found = {
        f"{name} {factory}": Engine(partial(build, factory), opened)
        for factory in (graph, inverted)
        for name, build, opened in (("ours", build_ours, open_ours), ("faiss", build_faiss, open_faiss))
    }
    own_graph = partial(build_ours, f"HNSW{HNSWLIB[0]}", effort=HNSWLIB[1])
    found["ours links {}, effort {}".format(*HNSWLIB)] = Engine(own_graph, open_ours)
    for name, build, opened, own in (
        ("hnswlib", build_hnswlib, open_hnswlib, HNSWLIB),
        ("usearch", build_usearch, open_usearch, (16, 128)),
    ):
        for links, effort in ((LINKS, FAISS_EFFORT), own):
            found[f"{name} links {links}, effort {effort}"] = Engine(partial(build, links, effort), opened, (name,))
    return found
