"""What changed in an index since its FAISS file was written: a small file beside the large one, replayed when it is read.

An update so writes, sends and hashes what changed, not what stayed. What a reader then holds in memory is one index, as if the
new vectors had always been in it.

Shape legend: N vectors, M ids asked for, B queries, C candidates, D dimensions.
"""

import io
from dataclasses import dataclass

import numpy as np

from tlray.errors import IndexCorruptError, first_line
from tlray.search.neighbours.brute import nearness_at
from tlray.search.neighbours.faiss_index import Engine
from tlray.search.neighbours.parameters import Parameters
from tlray.search.neighbours.recall import reach_all
from tlray.search.neighbours.row_table import Rows


@dataclass(frozen=True)
class Delta:
    """Changes since the FAISS file was written.

    Attributes:
        first_id: ids from here on are not in the FAISS file.
        removed: ids under `first_id` that are gone, in order.
        added_ND: vectors of the ids from `first_id` on, those that are gone again included; as the table has them, float16
            where that loses nothing, else float32.
    """

    first_id: int
    removed: np.ndarray
    added_ND: np.ndarray

    @classmethod
    def none(cls, first_id: int, dimensions: int) -> "Delta":
        """No changes."""
        return cls(first_id, np.empty(0, np.int64), np.empty((0, dimensions), np.float16))

    @property
    def size(self) -> int:
        """Vectors that came or went."""
        return len(self.removed) + len(self.added_ND)

    def then(self, removed: np.ndarray, added_ND: np.ndarray) -> "Delta":
        """These changes and later ones.

        Args:
            removed: ids, of old rows and of rows added before alike.
            added_ND: float32 vectors of the next ids.
        """
        old = removed[removed < self.first_id]
        both_ND = np.concatenate([self.added_ND, narrow(added_ND)]) if len(added_ND) else self.added_ND
        return Delta(self.first_id, np.union1d(self.removed, old), both_ND)

    def apply(self, engine: Engine, rows: Rows, parameters: Parameters) -> None:
        """Make the index of the FAISS file one of all rows.

        Args:
            engine: as it was read.
            rows: the live rows, by which added ones that are gone again are told.
            parameters: of a search.
        """
        if len(self.added_ND):
            engine.add(engine.prepared(self.added_ND), self.first_id)
        engine.remove(np.concatenate([self.removed, self._added_ids[rows.positions(self._added_ids) < 0]]))
        self.reach(engine, rows, parameters)

    def reach(self, engine: Engine, rows: Rows, parameters: Parameters) -> None:
        """Have the live ones of the added rows found by their own vectors, in an index that they were added to."""
        if engine.links_vectors and len(self.added_ND):
            is_live = rows.positions(self._added_ids) >= 0
            reach_all(engine, rows, self._added_ids[is_live], engine.prepared(self.added_ND[is_live]), parameters)

    @property
    def _added_ids(self) -> np.ndarray:
        return np.arange(self.first_id, self.first_id + len(self.added_ND))

    def to_bytes(self) -> bytes:
        """As an `.npz` file."""
        sink = io.BytesIO()
        np.savez(sink, removed=self.removed, added=self.added_ND)
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, first_id: int, uri: str) -> "Delta":
        """Read it back.

        Raises:
            IndexCorruptError: it is not what `to_bytes` makes.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return cls(first_id, arrays["removed"], arrays["added"])
        except (ValueError, KeyError, OSError) as error:
            raise IndexCorruptError(
                f"{uri} cannot be read: {first_line(error)}; build the index anew with `tlray index --rebuild`"
            ) from error


def narrow(features_BD: np.ndarray) -> np.ndarray:
    """The vectors as float16 where that loses nothing (as with storage half), else as they are."""
    with np.errstate(over="ignore"):
        half_BD = features_BD.astype(np.float16)
    return half_BD if np.array_equal(half_BD.astype(np.float32), features_BD) else features_BD


class StoredVectors:
    """Exact vectors that an index keeps beside its codes: those of the rows in the FAISS file, and those added since.

    Args:
        base_ND: the vectors file, memory-mapped; prepared.
        rows: the live rows.
        delta: changes since both files were written.
        engine: the index.
    """

    def __init__(self, base_ND: np.ndarray, rows: Rows, delta: Delta, engine: Engine) -> None:
        self._base_ND, self._delta, self._engine = base_ND, delta, engine
        self._added_ND = engine.prepared(delta.added_ND)
        # What is live and what went is what was there.
        live = rows.ids_N[: np.searchsorted(rows.ids_N, delta.first_id)]
        base_ids = np.sort(np.concatenate([live, delta.removed]), kind="stable")
        self.is_whole = len(base_ids) == len(base_ND)
        self._position_of: np.ndarray | None = None
        if len(base_ids) != delta.first_id:  # else an id is its position
            self._position_of = np.full(delta.first_id, -1, np.int64)
            self._position_of[base_ids] = np.arange(len(base_ids))

    def with_delta(self, rows: Rows, delta: Delta) -> "StoredVectors":
        """The same file with other changes since."""
        return StoredVectors(self._base_ND, rows, delta, self._engine)

    def _positions(self, ids: np.ndarray) -> np.ndarray:
        positions: np.ndarray = ids if self._position_of is None else self._position_of[ids]
        return positions

    def take(self, ids_M: np.ndarray) -> np.ndarray:
        """Vectors of live ids, prepared."""
        vectors_MD = np.empty((len(ids_M), self._base_ND.shape[1]), np.float32)
        is_new = ids_M >= self._delta.first_id
        vectors_MD[is_new] = self._added_ND[ids_M[is_new] - self._delta.first_id]
        vectors_MD[~is_new] = self._base_ND[self._positions(ids_M[~is_new])]
        return vectors_MD

    def nearness(self, queries_BD: np.ndarray, ids_BC: np.ndarray) -> np.ndarray:
        """See `Vectors.nearness`."""
        first_id, metric = self._delta.first_id, self._engine.metric
        if not len(self._added_ND):
            at_BC = ids_BC if self._position_of is None else np.where(ids_BC < 0, -1, self._positions(np.maximum(ids_BC, 0)))
            return nearness_at(queries_BD, self._base_ND, at_BC, metric)
        is_old = (ids_BC >= 0) & (ids_BC < first_id)
        at_BC = np.where(is_old, self._positions(np.where(is_old, ids_BC, 0)), -1)
        old_BC = nearness_at(queries_BD, self._base_ND, at_BC, metric)
        nearest_BC: np.ndarray = np.maximum(
            old_BC, nearness_at(queries_BD, self._added_ND, np.maximum(ids_BC - first_id, -1), metric)
        )
        return nearest_BC
