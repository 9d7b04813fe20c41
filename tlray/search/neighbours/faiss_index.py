"""One FAISS index: filling it, changing it, searching it, all by our ids.

Ids are given once, from 0 up. Inverted files (IVF) keep them and can remove; all others number vectors in the order of their
addition, so what is removed stays inside and is left out of every answer ("dead").

Cosine is L2 between unit vectors, which orders them the same way and, unlike inner product, survives PCA's moving of the
origin: cosine = 1 - squared distance / 2.

Shape legend: N vectors of the index, B queries, D dimensions, K neighbours, M ids.
"""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from tlray.errors import ConfigError, IndexCorruptError
from tlray.search.neighbours.exact import ExactVectors, Metric, in_full_precision, nearest_of, nearness_at, nearness_from
from tlray.search.neighbours.index_kind import IndexKind, core_of, faiss_said, kind_of, make, search_parameters
from tlray.search.neighbours.parameters import Parameters
from tlray.search.neighbours.unreached import Unreached

BLOCK_ROWS = 65_536
"""Vectors handled at once: 128 MiB at 512 dimensions, which bounds what copies take."""

MAX_EF_SEARCH = 4096
LIBRARY_VERSION = str(faiss.__version__)


class FaissIndex:
    """A FAISS index whose ids are ours.

    Args:
        index: FAISS's; for cosine, of unit vectors under L2.
        metric: what "near" means.

    Attributes:
        kind: what it can do and what it keeps.
        metric: what "near" means.
    """

    def __init__(self, index: Any, metric: Metric) -> None:
        self._owner = index  # what downcasting gives does not keep it alive
        self._index, self._core = faiss.downcast_index(index), core_of(index)
        self.kind: IndexKind = kind_of(index)
        self.metric = metric
        self._lock, self._has_map = threading.Lock(), False
        self._last: tuple[Parameters, np.ndarray | None, Any] | None = None
        self._own: Parameters | None = None
        self._unreached: Unreached | None = None
        self._longest_of = 0, 0.0

    @classmethod
    def make(cls, factory: str, dimensions: int, metric: Metric, ef_construction: int | None = None) -> "FaissIndex":
        """Make an empty FAISS index of a kind.

        Raises:
            ConfigError: FAISS does not know the factory string, or it has no use here; or `ef_construction` has none.
        """
        return cls(make(factory, dimensions, metric, ef_construction), metric)

    @classmethod
    def load(cls, path: Path, metric: Metric) -> "FaissIndex":
        """Read an index whose bytes were checked before: FAISS itself reads damaged files without a word.

        Raises:
            IndexCorruptError: FAISS cannot read it.
        """
        try:
            return cls(faiss.read_index(str(path)), metric)
        except RuntimeError as error:
            raise IndexCorruptError(f"{path} cannot be read by FAISS {faiss.__version__}: {error}") from error

    def save(self, path: Path) -> None:
        """Write the index to a local file; searches may go on meanwhile."""
        with self._lock:
            if self._has_map:
                self._core.set_direct_map_type(faiss.DirectMap.NoMap)
                self._has_map = False
            faiss.write_index(self._index, str(path))

    def to_bytes(self) -> bytes:
        """The index as it is sent to another process."""
        return bytes(faiss.serialize_index(self._index).tobytes())

    @classmethod
    def from_bytes(cls, data: bytes, metric: Metric) -> "FaissIndex":
        """An index from what `to_bytes` gave."""
        return cls(faiss.deserialize_index(np.frombuffer(data, np.uint8)), metric)

    @property
    def dimensions(self) -> int:
        """Length of a vector as it is given."""
        return int(self._index.d)

    @property
    def total(self) -> int:
        """How many vectors are inside, dead ones included."""
        return int(self._index.ntotal)

    @property
    def is_trained(self) -> bool:
        """Whether vectors can be added, as no training is needed or it is done."""
        return bool(self._index.is_trained)

    def train(self, vectors_BD: np.ndarray) -> None:
        """Train on a prepared sample; k-means runs on GPUs where FAISS has any.

        Raises:
            ConfigError: the sample is too small for this kind of index, or does not suit it.
        """
        if self.kind.lists and hasattr(faiss, "index_cpu_to_all_gpus") and faiss.get_num_gpus():
            self._core.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlat(self._core.d, self._core.metric_type))
        try:
            self._index.train(vectors_BD)
        except RuntimeError as error:
            raise ConfigError(
                f"the index cannot be trained on {len(vectors_BD)} vectors: FAISS says {faiss_said(error)}; name a smaller "
                "--factory, or Flat"
            ) from error

    def add(self, vectors_BD: np.ndarray, first_id: int) -> None:
        """Add prepared vectors under the ids from `first_id` up; without removal they must follow on those that are inside."""
        if self.kind.removes:
            self._index.add_with_ids(vectors_BD, np.arange(first_id, first_id + len(vectors_BD)))
            return
        assert first_id == self.total
        self._index.add(vectors_BD)

    def remove(self, ids_M: np.ndarray) -> None:
        """Remove what can be removed; the rest is dead once nobody names it."""
        if self.kind.removes and len(ids_M):
            self._index.remove_ids(np.ascontiguousarray(ids_M, np.int64))

    def merge(self, other: "FaissIndex") -> None:
        """Take over the vectors of another index of the same training and other ids; only where `kind.removes`."""
        self._core.merge_from(other._core, 0)
        self._index.ntotal = self._core.ntotal

    def search(
        self,
        queries_BD: np.ndarray,
        k: int,
        parameters: Parameters,
        exact: ExactVectors | None = None,
        allowed: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest vectors, compared again exactly where the parameters say so or FAISS's own comparison is not exact.

        Args:
            queries_BD: prepared.
            k: how many.
            parameters: of the search.
            exact: the exact vectors; only asked, and then needed, where `parameters.rerank` is over 1.
            allowed: for each id from 0 up whether it may be found, not changed later; None means all.

        Returns:
            ids_BK (int64, -1 where there are fewer) and nearness_BK (float32), nearest first.
        """
        if parameters.rerank > 1 and exact is not None:
            ids_BC, _ = self.candidates(queries_BD, k * parameters.rerank, parameters, allowed)
            return nearest_of([(ids_BC, exact.nearness(queries_BD, ids_BC))], k)

        def by_faiss(some_BD: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
            ids_BJ, distances_BJ = self.candidates(some_BD, wanted, parameters, allowed)
            return ids_BJ, nearness_from(distances_BJ, self.metric)

        if self.kind.compares_all:
            return in_full_precision(by_faiss, self.nearness, queries_BD, k, self.metric, self._longest)
        return by_faiss(queries_BD, k)

    def candidates(
        self, queries_BD: np.ndarray, k: int, parameters: Parameters, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """What FAISS itself finds: ids_BK and its own distances, for those who compare again."""
        given: Any = None
        if parameters is not self._own or allowed is not None:
            last = self._last  # kept from call to call: making them takes as long as a small search
            if last is None or last[0] is not parameters or last[1] is not allowed:
                self._last = last = (parameters, allowed, search_parameters(self._core, self.kind, parameters, allowed))
            given = last[2]
        distances_BK, ids_BK = self._index.search(queries_BD, k, params=given)
        if self._unreached is not None:
            return self._unreached.join(queries_BD, ids_BK, distances_BK, allowed)
        return ids_BK, distances_BK

    def set_default(self, parameters: Parameters) -> None:
        """Keep parameters in the index itself, where FAISS finds them quicker in searches by this very object; before any."""
        if self.kind.lists and not isinstance(faiss.downcast_index(self._core.quantizer), faiss.IndexHNSW):
            self._core.nprobe = min(parameters.nprobe or 1, self.kind.lists)
            self._own = parameters

    def centres(self) -> "FaissIndex | None":
        """The centres of its lists as an index of its own, behind the same transforms, for as long as this one lives."""
        return FaissIndex(self._behind_transforms(self._core.quantizer), self.metric) if self.kind.lists else None

    def _behind_transforms(self, core: Any) -> Any:
        if not self.kind.is_transformed:
            return core
        whole = faiss.IndexPreTransform(core)
        for at in reversed(range(self._index.chain.size())):
            whole.prepend_transform(self._index.chain.at(at))
        return whole

    @property
    def unreached(self) -> np.ndarray:
        """Ids of the rows that are compared with every query, as the graph does not lead to them."""
        return np.empty(0, np.int64) if self._unreached is None else self._unreached.ids_U

    def reach(self, ids_M: np.ndarray) -> None:
        """Compare these rows, too, with every query from now on; only where `kind.links_vectors`."""
        ids_U = np.union1d(self.unreached, ids_M).astype(np.int64)
        if len(ids_U):
            flat = faiss.IndexFlat(self._core.d, self._core.metric_type)
            flat.add(self._core.reconstruct_batch(ids_U))
            self._unreached = Unreached(ids_U, self._behind_transforms(flat), self.metric)

    def vectors(self, ids_M: np.ndarray) -> np.ndarray:
        """The prepared vectors_MD that are stored under ids; only where `kind.is_exact`."""
        vectors_MD: np.ndarray
        if not self.kind.removes:
            vectors_MD = self._stored()[ids_M]
            return vectors_MD
        with self._lock:
            if not self._has_map:
                self._core.set_direct_map_type(faiss.DirectMap.Hashtable)
                self._has_map = True
            vectors_MD = self._index.reconstruct_batch(np.ascontiguousarray(ids_M, np.int64))
        return vectors_MD

    def nearness(self, queries_BD: np.ndarray, ids_BC: np.ndarray) -> np.ndarray:
        """Exact nearness_BC of queries to stored vectors, minus infinity where an id is -1; `kind.is_exact`, not `removes`."""
        return nearness_at(queries_BD, self._stored(), ids_BC, self.metric)

    def _longest(self) -> float:
        """The length of the longest vector inside."""
        if self._longest_of[0] != self.total:
            self._longest_of = self.total, max(float(np.linalg.norm(each_BD, axis=1).max()) for _, each_BD in self.blocks())
        return self._longest_of[1]

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All that is stored, dead vectors included, as ids_B and vectors_BD; only where `kind.is_exact`."""
        if not self.kind.removes:
            stored_ND = self._stored()
            for start in range(0, len(stored_ND), BLOCK_ROWS):
                block_BD = stored_ND[start : start + BLOCK_ROWS]
                yield np.arange(start, start + len(block_BD)), block_BD
            return
        lists, ids, vectors, rows = self._core.invlists, [], [], 0
        for number in range(self.kind.lists):
            size = lists.list_size(number)
            if size:
                codes = faiss.rev_swig_ptr(lists.get_codes(number), size * self._core.code_size)
                ids.append(faiss.rev_swig_ptr(lists.get_ids(number), size))
                vectors.append(codes.view(np.float32).reshape(size, -1))
                rows += size
            if rows >= BLOCK_ROWS:
                yield np.concatenate(ids), np.concatenate(vectors)
                ids, vectors, rows = [], [], 0
        if ids:
            yield np.concatenate(ids), np.concatenate(vectors)

    def _stored(self) -> np.ndarray:
        """The vectors_ND of a flat index or a graph, by id, without a copy."""
        storage = faiss.downcast_index(self._core.storage) if self.kind.is_graph else self._core
        stored_ND: np.ndarray = faiss.rev_swig_ptr(storage.get_xb(), self.total * self._core.d).reshape(self.total, -1)
        return stored_ND

    def reconstruction_error(self, given_MD: np.ndarray, ids_M: np.ndarray) -> float:
        """Squared error of what is stored under ids, over the squared length of the prepared vectors that were given."""
        if self.kind.is_exact:
            return 0.0
        # Graphs keep what they stored by number; the others have a codec of their own.
        is_graph = self.kind.is_graph
        stored_MD = self._index.reconstruct_batch(ids_M) if is_graph else self._index.sa_decode(self._index.sa_encode(given_MD))
        return float(((stored_MD - given_MD) ** 2).sum() / max(float((given_MD**2).sum()), np.finfo(np.float32).tiny))


def threads() -> int:
    """How many threads one FAISS call takes."""
    return int(faiss.omp_get_max_threads())


def set_threads(count: int) -> None:
    """Set how many threads a FAISS call takes when it is made from this thread."""
    faiss.omp_set_num_threads(count)
