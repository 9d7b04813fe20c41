"""What kind of FAISS index a factory string makes: what it can do and keeps, and how it is told the parameters of a search."""

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from tlray.errors import ConfigError
from tlray.search.neighbours.exact import Metric
from tlray.search.neighbours.parameters import Parameters


@dataclass(frozen=True)
class IndexKind:
    """What is true of an index from its making to its end.

    Attributes:
        lists: inverted lists (IVF) that vectors are sorted into; 0 where it has none.
        removes: removed vectors really leave it, and ids are kept as given; else they stay inside ("dead"), numbered from 0 up.
        is_graph: a search follows the links of a graph (HNSW).
        is_transformed: vectors pass a transform first (PCA, OPQ).
        is_exact: it holds the vectors themselves, so scores are exact and vectors can be read from it.
        compares_all: a search compares every vector as it is, so no neighbour can be missed.
        links_vectors: it is a graph over vectors, perhaps transformed ones, not over codes.
        trains: it must be trained before vectors are added.
    """

    lists: int
    removes: bool
    is_graph: bool
    is_transformed: bool
    is_exact: bool
    compares_all: bool
    links_vectors: bool
    trains: bool


def core_of(index: Any) -> Any:
    """FAISS's index behind the transforms, as its own class."""
    index = faiss.downcast_index(index)
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def kind_of(index: Any) -> IndexKind:
    """The kind of one of FAISS's indexes."""
    core, is_transformed = core_of(index), isinstance(faiss.downcast_index(index), faiss.IndexPreTransform)
    lists, is_graph = int(core.nlist) if isinstance(core, faiss.IndexIVF) else 0, isinstance(core, faiss.IndexHNSW)
    keeps_vectors = isinstance(core, (faiss.IndexFlat, faiss.IndexHNSWFlat, faiss.IndexIVFFlat))
    is_exact = keeps_vectors and not is_transformed
    return IndexKind(
        lists=lists,
        removes=lists > 0,
        is_graph=is_graph,
        is_transformed=is_transformed,
        is_exact=is_exact,
        compares_all=is_exact and not lists and not is_graph,
        links_vectors=is_graph and keeps_vectors,
        trains=lists > 0 or is_transformed or not keeps_vectors,
    )


def make(factory: str, dimensions: int, metric: Metric, ef_construction: int | None = None) -> Any:
    """An empty index of FAISS's; for cosine it compares unit vectors by L2 (see `tlray.search.neighbours.faiss_index`).

    Args:
        factory: FAISS's factory string.
        dimensions: of a vector.
        metric: what "near" means.
        ef_construction: candidates that a new node of a graph is linked from; None for FAISS's 40.

    Raises:
        ConfigError: FAISS does not know the factory string, or it wraps an index in a way that has no use here; or there is no
            graph for `ef_construction`.
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
    if ef_construction is not None:
        core = core_of(index)
        if not isinstance(core, faiss.IndexHNSW):
            raise ConfigError(
                f"ef_construction is of HNSW graphs, and the index is {factory}; leave it out, or give --factory HNSW16"
            )
        core.hnsw.efConstruction = ef_construction
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


def search_parameters(core: Any, kind: IndexKind, parameters: Parameters, allowed: np.ndarray | None) -> Any:
    """The parameters of a search as FAISS takes them.

    Args:
        core: `core_of` the index.
        kind: of the index.
        parameters: of the search.
        allowed: for each id from 0 up whether it may be found; None means all.

    Returns:
        None where FAISS needs none.
    """
    own: Any
    selector = None if allowed is None else faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    if kind.lists:
        own = faiss.SearchParametersIVF(sel=selector, nprobe=min(parameters.nprobe or 1, kind.lists))
        if isinstance(faiss.downcast_index(core.quantizer), faiss.IndexHNSW):
            # As autofaiss has it: a graph that finds n lists is asked for twice as many candidates.
            own.quantizer_params = faiss.SearchParametersHNSW(efSearch=2 * (parameters.nprobe or 1))
    elif kind.is_graph:
        own = faiss.SearchParametersHNSW(sel=selector, efSearch=parameters.ef_search or 16)
    elif selector is not None:
        own = faiss.SearchParameters(sel=selector)
    else:
        return None
    return faiss.SearchParametersPreTransform(index_params=own) if kind.is_transformed else own
