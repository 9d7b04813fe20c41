"""What kind of FAISS index a factory string makes: what it can do and what it keeps, whatever vectors are in it."""

from dataclasses import dataclass
from typing import Any

import faiss

from tlray.errors import ConfigError
from tlray.search.neighbours.exact import Metric


@dataclass(frozen=True)
class IndexKind:
    """What is true of an index from its making to its end.

    Attributes:
        lists: inverted lists (IVF) that vectors are sorted into; 0 where it has none.
        is_graph: a search follows the links of a graph (HNSW).
        is_transformed: vectors pass a transform first (PCA, OPQ).
        keeps_vectors: vectors are kept as they came, not as codes of them.
        trains: it must be trained before vectors are added.
    """

    lists: int
    is_graph: bool
    is_transformed: bool
    keeps_vectors: bool
    trains: bool

    @property
    def removes(self) -> bool:
        """Removed vectors really leave it, and ids are kept as given; else they stay inside ("dead"), numbered from 0 up."""
        return self.lists > 0

    @property
    def is_exact(self) -> bool:
        """It holds the vectors themselves, so scores are exact and vectors can be read from it."""
        return self.keeps_vectors and not self.is_transformed

    @property
    def compares_all(self) -> bool:
        """A search compares every vector as it is, so no neighbour can be missed."""
        return self.is_exact and not self.lists and not self.is_graph

    @property
    def links_vectors(self) -> bool:
        """It is a graph over vectors, perhaps transformed ones, not over codes."""
        return self.is_graph and self.keeps_vectors


def core_of(index: Any) -> Any:
    """FAISS's index behind the transforms, as its own class."""
    index = faiss.downcast_index(index)
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def kind_of(index: Any) -> IndexKind:
    """The kind of one of FAISS's indexes."""
    core, is_transformed = core_of(index), isinstance(faiss.downcast_index(index), faiss.IndexPreTransform)
    lists = int(core.nlist) if isinstance(core, faiss.IndexIVF) else 0
    keeps_vectors = isinstance(core, (faiss.IndexFlat, faiss.IndexHNSWFlat, faiss.IndexIVFFlat))
    return IndexKind(
        lists=lists,
        is_graph=isinstance(core, faiss.IndexHNSW),
        is_transformed=is_transformed,
        keeps_vectors=keeps_vectors,
        trains=bool(lists) or is_transformed or not keeps_vectors,
    )


def make(factory: str, dimensions: int, metric: Metric) -> Any:
    """An empty index of FAISS's; for cosine it compares unit vectors by L2 (see `tlray.search.neighbours.faiss_index`).

    Raises:
        ConfigError: FAISS does not know the factory string, or it wraps an index in a way that has no use here.
    """
    kind = faiss.METRIC_INNER_PRODUCT if metric == "ip" else faiss.METRIC_L2
    try:
        index = faiss.index_factory(dimensions, factory, kind)
    except RuntimeError as error:
        raise ConfigError(f"factory {factory!r} for {dimensions} dimensions: FAISS says {faiss_said(error)}") from error
    if isinstance(core_of(index), (faiss.IndexIDMap, faiss.IndexRefine)):
        raise ConfigError(f"factory {factory!r}: leave out IDMap and RFlat; ids and re-ranking (--rerank) are ours")
    if metric == "ip" and "PCA" in factory:
        raise ConfigError(f"factory {factory!r}: PCA moves the origin and so changes inner products; use OPQ, or cosine")
    return index


def faiss_said(error: RuntimeError) -> str:
    """The end of FAISS's message, without the place in its source code."""
    return str(error).split(": ")[-1].strip()


def kind_made_by(factory: str, dimensions: int, metric: Metric) -> IndexKind:
    """The kind of index that a factory string makes.

    Raises:
        ConfigError: FAISS does not know it, or it has no use here.
    """
    return kind_of(make(factory, dimensions, metric))
