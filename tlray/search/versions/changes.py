"""What changed in an index since its FAISS file was written: a small file beside the large one, replayed when it is read.

An update so writes, sends and hashes what changed, not what stayed. What a reader then holds in memory is one index, as if the
new vectors had always been in it.

Shape legend: N vectors, D dimensions.
"""

import io
from dataclasses import dataclass

import numpy as np

from tlray.errors import IndexCorruptError, first_line
from tlray.search.neighbours.exact import prepared
from tlray.search.neighbours.faiss_index import FaissIndex
from tlray.search.neighbours.parameters import Parameters
from tlray.search.neighbours.recall import reach_all
from tlray.search.rows.row_table import RowTable


@dataclass(frozen=True)
class VectorChanges:
    """Changes since the FAISS file was written.

    Attributes:
        first_id: ids from here on are not in the FAISS file. Ids are nodes (`tlray.search.rows.row_table`).
        removed: ids under `first_id` that are gone, in order.
        added_ND: vectors of the ids from `first_id` on, those that are gone again included; as the table has them, float16
            where that loses nothing, else float32.
    """

    first_id: int
    removed: np.ndarray
    added_ND: np.ndarray

    @classmethod
    def none(cls, first_id: int, dimensions: int) -> "VectorChanges":
        """Changes that change nothing, between equal versions."""
        return cls(first_id, np.empty(0, np.int64), np.empty((0, dimensions), np.float16))

    @property
    def size(self) -> int:
        """How many vectors came or went."""
        return len(self.removed) + len(self.added_ND)

    def then(self, removed: np.ndarray, added_ND: np.ndarray) -> "VectorChanges":
        """These changes followed by later ones, as one.

        Args:
            removed: ids, of vectors in the FAISS file and of those added since alike.
            added_ND: float32 vectors of the next ids.
        """
        old = removed[removed < self.first_id]
        both_ND = np.concatenate([self.added_ND, narrow(added_ND)]) if len(added_ND) else self.added_ND
        return VectorChanges(self.first_id, np.union1d(self.removed, old), both_ND)

    def apply(self, index: FaissIndex, rows: RowTable, parameters: Parameters) -> None:
        """Make the index of the FAISS file one of all rows.

        Args:
            index: as it was read.
            rows: the live rows, by which added vectors that are gone again are told.
            parameters: of a search.
        """
        if len(self.added_ND):
            index.add(prepared(self.added_ND, index.metric), self.first_id)
        index.remove(np.concatenate([self.removed, self._added_ids[~rows.are_live(self._added_ids)]]))
        self.reach(index, rows, parameters)

    def reach(self, index: FaissIndex, rows: RowTable, parameters: Parameters) -> None:
        """Have the live ones of the added vectors find themselves, in an index that they were added to."""
        if index.kind.links_vectors and len(self.added_ND):
            is_live = rows.are_live(self._added_ids)
            new_MD = prepared(self.added_ND[is_live], index.metric)
            reach_all(index, rows.nodes_U, self._added_ids[is_live], new_MD, parameters)

    @property
    def _added_ids(self) -> np.ndarray:
        return np.arange(self.first_id, self.first_id + len(self.added_ND))

    def to_bytes(self) -> bytes:
        """The changes as the content of an `.npz` file."""
        sink = io.BytesIO()
        np.savez(sink, removed=self.removed, added=self.added_ND)
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, first_id: int, uri: str) -> "VectorChanges":
        """Read changes back from the content of an `.npz` file.

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
