"""FAISS's indexes: making one, changing it, and searching it with our ids.

Ids are given once, from 0 up. Inverted files (IVF) keep them and can remove; all others number vectors in the order of their
addition, so what is removed stays inside and is left out of every answer ("dead").

Cosine is L2 between unit vectors, which orders rows the same way and, unlike inner product, survives PCA's moving of the
origin: cosine = 1 - squared distance / 2. Inside this package *nearness* is what is larger for nearer rows: the cosine, the
inner product, or minus the squared distance.

Shape legend: N vectors of the index, B queries, D dimensions, K neighbours.
"""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from tlray.errors import ConfigError, IndexCorruptError
from tlray.search.neighbours.factory import Metric
from tlray.search.neighbours.parameters import Parameters
from tlray.search.neighbours.unreached import Unreached

BLOCK_ROWS = 65_536
"""Vectors handled at once: 128 MiB at 512 dimensions, which bounds the copies that normalising makes."""

MAX_EF_SEARCH = 4096
LIBRARY_VERSION = str(faiss.__version__)


class Engine:
    """A FAISS index whose ids are ours.

    Args:
        index: FAISS's.
        metric: what "near" means; for cosine, `index` holds unit vectors under L2.
    """

    def __init__(self, index: Any, metric: Metric) -> None:
        self._owner = index  # what downcasting gives does not keep it alive
        self.index = faiss.downcast_index(index)
        self.metric = metric
        self._transformed = isinstance(self.index, faiss.IndexPreTransform)
        self.core = faiss.downcast_index(self.index.index) if self._transformed else self.index
        self._lock, self._has_map = threading.Lock(), False
        self._last: tuple[Parameters, np.ndarray | None, Any] | None = None
        self._own: Parameters | None = None
        self._unreached: Unreached | None = None

    @classmethod
    def make(cls, factory: str, dimensions: int, metric: Metric) -> "Engine":
        """An empty index.

        Raises:
            ConfigError: FAISS does not know the factory string, or it wraps an index in a way that has no use here.
        """
        kind = faiss.METRIC_INNER_PRODUCT if metric == "ip" else faiss.METRIC_L2
        try:
            engine = cls(faiss.index_factory(dimensions, factory, kind), metric)
        except RuntimeError as error:
            raise ConfigError(
                f"factory {factory!r} for {dimensions} dimensions: FAISS says {str(error).split(': ')[-1]}"
            ) from error
        if isinstance(engine.core, (faiss.IndexIDMap, faiss.IndexRefine)):
            raise ConfigError(f"factory {factory!r}: leave out IDMap and RFlat; ids and re-ranking (--rerank) are ours")
        if metric == "ip" and "PCA" in factory:
            raise ConfigError(f"factory {factory!r}: PCA moves the origin and so changes inner products; use OPQ, or cosine")
        return engine

    @classmethod
    def load(cls, path: Path, metric: Metric) -> "Engine":
        """Read an index whose bytes were checked before: FAISS itself reads damaged files without a word.

        Raises:
            IndexCorruptError: FAISS cannot read it.
        """
        try:
            return cls(faiss.read_index(str(path)), metric)
        except RuntimeError as error:
            raise IndexCorruptError(f"{path} cannot be read by FAISS {faiss.__version__}: {error}") from error

    def save(self, path: Path) -> None:
        """Write it to a local file; searches may go on."""
        with self._lock:
            if self._has_map:
                self.core.set_direct_map_type(faiss.DirectMap.NoMap)
                self._has_map = False
            faiss.write_index(self.index, str(path))

    def to_bytes(self) -> bytes:
        """The index as it is sent to another process."""
        data: bytes = faiss.serialize_index(self.index).tobytes()
        return data

    @classmethod
    def from_bytes(cls, data: bytes, metric: Metric) -> "Engine":
        """What `to_bytes` gave."""
        return cls(faiss.deserialize_index(np.frombuffer(data, np.uint8)), metric)

    def merge(self, other: "Engine") -> None:
        """Take over the vectors of another one of the same training and other ids; only where `removes`."""
        self.core.merge_from(other.core, 0)
        self.index.ntotal = self.core.ntotal

    @property
    def removes(self) -> bool:
        """Whether removed vectors really go."""
        return isinstance(self.core, faiss.IndexIVF)

    @property
    def is_exact(self) -> bool:
        """Whether it holds the vectors themselves, so that its scores are exact."""
        return not self._transformed and isinstance(self.core, (faiss.IndexFlat, faiss.IndexHNSWFlat, faiss.IndexIVFFlat))

    @property
    def is_exhaustive(self) -> bool:
        """Whether every vector is compared as it is, so that no neighbour can be missed."""
        return self.is_exact and not self.lists and not self.is_graph

    @property
    def is_trained(self) -> bool:
        """Whether vectors can be added."""
        return bool(self.index.is_trained)

    @property
    def dimensions(self) -> int:
        """Of a vector as it is given."""
        return int(self.index.d)

    @property
    def total(self) -> int:
        """Vectors inside, dead ones included."""
        return int(self.index.ntotal)

    @property
    def lists(self) -> int:
        """Inverted lists, 0 where it has none."""
        return int(self.core.nlist) if isinstance(self.core, faiss.IndexIVF) else 0

    def centres(self) -> "Engine | None":
        """The centres of its lists as an index of its own, behind the same transforms, for as long as this one lives."""
        return Engine(self._behind_transforms(self.core.quantizer), self.metric) if self.lists else None

    def _behind_transforms(self, core: Any) -> Any:
        if not self._transformed:
            return core
        whole = faiss.IndexPreTransform(core)
        for at in reversed(range(self.index.chain.size())):
            whole.prepend_transform(self.index.chain.at(at))
        return whole

    @property
    def is_graph(self) -> bool:
        """Whether it is an HNSW."""
        return isinstance(self.core, faiss.IndexHNSW)

    @property
    def links_vectors(self) -> bool:
        """Whether it is an HNSW of the vectors themselves, maybe behind a transform, not of codes."""
        return isinstance(self.core, faiss.IndexHNSWFlat)

    def prepared(self, features_BD: np.ndarray) -> np.ndarray:
        """Vectors as FAISS gets them: float32, of unit length for cosine."""
        if self.metric != "cosine":
            return np.ascontiguousarray(features_BD, np.float32)
        unit_BD = np.array(features_BD, np.float32, order="C")
        self.prepare(unit_BD)
        return unit_BD

    def prepare(self, features_BD: np.ndarray) -> None:
        """Make contiguous float32 vectors what `prepared` gives, where they are."""
        if self.metric == "cosine":
            faiss.normalize_L2(features_BD)  # a zero row stays zero

    def train(self, vectors_BD: np.ndarray) -> None:
        """Train on a prepared sample; k-means runs on GPUs where FAISS has any."""
        if self.lists and hasattr(faiss, "index_cpu_to_all_gpus") and faiss.get_num_gpus():
            self.core.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlat(self.core.d, self.core.metric_type))
        self.index.train(vectors_BD)

    def add(self, vectors_BD: np.ndarray, first_id: int) -> None:
        """Add prepared vectors under the ids from `first_id` up; without removal they must follow on those that are inside."""
        if self.removes:
            self.index.add_with_ids(vectors_BD, np.arange(first_id, first_id + len(vectors_BD)))
            return
        assert first_id == self.total
        self.index.add(vectors_BD)

    def set_default(self, parameters: Parameters) -> None:
        """Keep parameters in the index itself, where FAISS finds them quicker in searches by this very object; before any."""
        if self.lists and not isinstance(faiss.downcast_index(self.core.quantizer), faiss.IndexHNSW):
            self.core.nprobe = min(parameters.nprobe or 1, self.lists)
            self._own = parameters

    def remove(self, ids: np.ndarray) -> None:
        """Remove what can be removed; the rest is dead once nobody names it."""
        if self.removes and len(ids):
            self.index.remove_ids(np.ascontiguousarray(ids, np.int64))

    def search(
        self, queries_BD: np.ndarray, k: int, parameters: Parameters, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Nearest vectors.

        Args:
            queries_BD: as `prepared` gives them.
            k: how many.
            parameters: of the search.
            allowed: for each id from 0 up whether it may be found, not changed later; None means all.

        Returns:
            ids_BK (int64, -1 where there are fewer) and nearness_BK (float32), nearest first.
        """
        ids_BK, distances_BK = self.candidates(queries_BD, k, parameters, allowed)
        if self.metric == "ip":
            return ids_BK, distances_BK
        return ids_BK, 1 - distances_BK / 2 if self.metric == "cosine" else -distances_BK

    def candidates(
        self, queries_BD: np.ndarray, k: int, parameters: Parameters, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Like `search`, with FAISS's own distances, for those who compare again."""
        given: Any = None
        if parameters is not self._own or allowed is not None:
            # Kept from call to call: making them takes as long as a small search.
            last = self._last
            if last is None or last[0] is not parameters or last[1] is not allowed:
                self._last = last = (parameters, allowed, self._faiss_parameters(parameters, allowed))
            given = last[2]
        distances_BK, ids_BK = self.index.search(queries_BD, k, params=given)
        if self._unreached is not None:
            return self._unreached.join(queries_BD, ids_BK, distances_BK, allowed)
        return ids_BK, distances_BK

    @property
    def unreached(self) -> np.ndarray:
        """Ids of the rows that are compared with every query, as the graph does not lead to them."""
        return np.empty(0, np.int64) if self._unreached is None else self._unreached.ids_U

    def reach(self, ids: np.ndarray) -> None:
        """Compare these rows, too, with every query from now on; only where `links_vectors`."""
        ids_U = np.union1d(self.unreached, ids).astype(np.int64)
        if len(ids_U):
            flat = faiss.IndexFlat(self.core.d, self.core.metric_type)
            flat.add(self.core.reconstruct_batch(ids_U))
            self._unreached = Unreached(ids_U, self._behind_transforms(flat), self.metric)

    def _faiss_parameters(self, parameters: Parameters, allowed: np.ndarray | None) -> Any:
        own: Any
        selector = None if allowed is None else faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        if self.lists:
            own = faiss.SearchParametersIVF(sel=selector, nprobe=min(parameters.nprobe or 1, self.lists))
            if isinstance(faiss.downcast_index(self.core.quantizer), faiss.IndexHNSW):
                # As autofaiss has it: a graph that finds n lists is asked for twice as many candidates.
                own.quantizer_params = faiss.SearchParametersHNSW(efSearch=2 * (parameters.nprobe or 1))
        elif self.is_graph:
            own = faiss.SearchParametersHNSW(sel=selector, efSearch=parameters.ef_search or 16)
        elif selector is not None:
            own = faiss.SearchParameters(sel=selector)
        else:
            return None
        return faiss.SearchParametersPreTransform(index_params=own) if self._transformed else own

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        """What is stored under ids, as `prepared` gave it; only where `is_exact`."""
        if not self.removes:
            stored_BD: np.ndarray = self._stored()[ids]
            return stored_BD
        with self._lock:
            if not self._has_map:
                self.core.set_direct_map_type(faiss.DirectMap.Hashtable)
                self._has_map = True
            vectors_BD: np.ndarray = self.index.reconstruct_batch(np.ascontiguousarray(ids, np.int64))
        return vectors_BD

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All that is stored, dead vectors included, as ids and vectors; only where `is_exact`."""
        if not self.removes:
            stored_ND = self._stored()
            for start in range(0, len(stored_ND), BLOCK_ROWS):
                block_BD = stored_ND[start : start + BLOCK_ROWS]
                yield np.arange(start, start + len(block_BD)), block_BD
            return
        lists, pending, rows = self.core.invlists, [], 0
        for number in range(self.lists):
            size = lists.list_size(number)
            if size:
                codes = faiss.rev_swig_ptr(lists.get_codes(number), size * self.core.code_size)
                ids_B = faiss.rev_swig_ptr(lists.get_ids(number), size)
                pending.append((ids_B, codes.view(np.float32).reshape(size, -1)))
                rows += size
            if rows >= BLOCK_ROWS:
                yield _joined(pending)
                pending, rows = [], 0
        if pending:
            yield _joined(pending)

    def _stored(self) -> np.ndarray:
        """The vectors of a flat index or a graph, by id, without a copy."""
        storage = faiss.downcast_index(self.core.storage) if self.is_graph else self.core
        stored_ND: np.ndarray = faiss.rev_swig_ptr(storage.get_xb(), self.total * self.core.d).reshape(self.total, -1)
        return stored_ND

    def reconstruction_error(self, given_BD: np.ndarray, ids: np.ndarray) -> float:
        """Squared error of what is stored under ids, over the squared length of the prepared vectors that were given."""
        if self.is_exact:
            return 0.0
        # Graphs keep what they stored by number; the others have a codec of their own.
        stored_BD = self.index.reconstruct_batch(ids) if self.is_graph else self.index.sa_decode(self.index.sa_encode(given_BD))
        return float(((stored_BD - given_BD) ** 2).sum() / max(float((given_BD**2).sum()), np.finfo(np.float32).tiny))


def _joined(pieces: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([ids_B for ids_B, _ in pieces]), np.concatenate([vectors_BD for _, vectors_BD in pieces])
