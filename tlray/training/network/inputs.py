"""What a network is trained on: decoded images of a source, or cached activations of a table.

Shape legend: N examples, B of a batch, H height, W width, C channels, D floats of one activation.
"""

import os
import shutil
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.errors import ExamplesError
from tlray.lake.source.read_images import ReadSpec, read_images
from tlray.lake.table.parts import read_part, vectors_of
from tlray.lake.table.table import Table
from tlray.machine import memory_budget_bytes
from tlray.training.network.augment import Kind, augment, canvas_of, centre

CHUNK_IMAGES = 16
"""Images that one thread decodes at a time."""

_DISK_FRACTION = 0.5


class Rows(Protocol):
    """The inputs of examples, by their positions.

    Attributes:
        failed_N: which images turned out not to be readable, so far.
        notes: why, of the first few.
    """

    failed_N: np.ndarray
    notes: list[str]

    def close(self) -> None:
        """End its threads."""
        ...

    def take(self, positions_B: np.ndarray, epoch: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Inputs of some examples.

        Args:
            positions_B: of the examples.
            epoch: for augmentation; None for none.

        Returns:
            B inputs, and B bools: False where there is none (an image that cannot be read), whose input is zeros.
        """
        ...


def make_room(
    shape: tuple[int, ...], dtype: type, memory_bytes: int | None, scratch: Path, sharers: int = 1
) -> np.ndarray | None:
    """An array in memory, or in a file where it is too large for that, or none where the disk is too small as well.

    Args:
        shape: of the array.
        dtype: likewise.
        memory_bytes: what it may take; default half of this machine's.
        scratch: folder of the file.
        sharers: processes on this machine that each make one; memory and disk are divided among them.
    """
    size_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if size_bytes <= (memory_bytes or memory_budget_bytes()) // sharers:
        return np.empty(shape, dtype)
    if size_bytes <= _DISK_FRACTION * shutil.disk_usage(scratch).free / sharers:
        return np.lib.format.open_memmap(scratch / "rows.npy", "w+", dtype, shape)
    return None


class ImageRows:
    """Images of a source, each decoded when it is first asked for and kept where there is room.

    Args:
        items: uri, etag, size_bytes and label of N images, as the source lists them.
        spec: how to fetch and decode.
        kinds: of augmentation.
        seed: likewise.
        memory_bytes: what decoded images may take; default half of this machine's memory.
        scratch: folder for a file where they take more.
        sharers: see `make_room`.
    """

    def __init__(
        self,
        items: pa.Table,
        spec: ReadSpec,
        *,
        kinds: Collection[Kind],
        seed: int,
        memory_bytes: int | None,
        scratch: Path,
        sharers: int = 1,
    ) -> None:
        self._items, self._kinds, self._seed = items, frozenset(kinds), seed
        self._crop = spec.preprocessing.crop
        self._spec = spec.model_copy(update={"preprocessing": canvas_of(spec.preprocessing, kinds)})
        self._shape_HWC = (*self._spec.preprocessing.crop, 3)
        self._kept_NHWC = make_room((len(items), *self._shape_HWC), np.uint8, memory_bytes, scratch, sharers)
        self._known_N = np.zeros(len(items), bool)
        self.failed_N = np.zeros(len(items), bool)
        self._threads = ThreadPoolExecutor(os.cpu_count(), "decode")
        self.notes: list[str] = []

    def close(self) -> None:
        """End the threads that decode."""
        self._threads.shutdown(cancel_futures=True)

    def take(self, positions_B: np.ndarray, epoch: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Images_BHWC, uint8, of the recipe's crop."""
        if self._kept_NHWC is None:
            images_BHWC = self._decode(positions_B)
        else:
            missing = positions_B[~self._known_N[positions_B]]
            if len(missing):
                self._kept_NHWC[missing] = self._decode(missing)
                self._known_N[missing] = True
            images_BHWC = self._kept_NHWC[positions_B]
        fine_B = ~self.failed_N[positions_B]
        if epoch is None or not self._kinds:
            return centre(images_BHWC, self._crop), fine_B
        return augment(images_BHWC, positions_B, self._crop, self._kinds, seed=self._seed, epoch=epoch), fine_B

    def _decode(self, positions: np.ndarray) -> np.ndarray:
        images_BHWC = np.zeros((len(positions), *self._shape_HWC), np.uint8)
        starts = range(0, len(positions), CHUNK_IMAGES)
        chunks = [positions[start : start + CHUNK_IMAGES] for start in starts]
        for start, chunk, (decoded_BHWC, fine_B) in zip(starts, chunks, self._threads.map(self._fetch, chunks), strict=True):
            images_BHWC[start : start + len(chunk)][fine_B] = decoded_BHWC
            self.failed_N[chunk] = ~fine_B
        return images_BHWC

    def _fetch(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those that could be decoded, and which these are."""
        batches = list(read_images(self._items.take(pa.array(positions)), self._spec))
        self.notes += [note for batch in batches for note in batch.notes]
        fine_B = np.concatenate([np.asarray(pc.is_null(batch.rows["error"])) for batch in batches])
        return np.concatenate([batch.images_BHWC for batch in batches]), fine_B


class ActivationRows:
    """Activations of a table, all read when it is made.

    Args:
        table: at the version that is trained on.
        column: of the cut.
        uris: of the N examples.
        memory_bytes: what they may take in memory; default half of this machine's.
        scratch: folder for a file where they take more.
        sharers: see `make_room`.

    Raises:
        ExamplesError: some are not finite, or not there, or there is no room for them.
    """

    def __init__(
        self,
        table: Table,
        column: str,
        uris: pa.StringArray,
        *,
        memory_bytes: int | None,
        scratch: Path,
        sharers: int = 1,
    ) -> None:
        length = int(np.prod(table.recipe_file.shapes[column]))
        rows_ND = make_room((len(uris), length), np.float32, memory_bytes, scratch, sharers)
        if rows_ND is None:
            raise ExamplesError(
                f"{len(uris)} activations of {length} floats fit neither in memory_bytes nor on the disk of {scratch}; "
                "cut at a later layer, whose activations are smaller, or train from images"
            )
        found_N = np.zeros(len(uris), bool)
        odd = 0
        for part in table.parts("ok"):
            rows = read_part(table.uri, part.path, ["uri", column])
            at = pc.index_in(rows["uri"], value_set=uris)
            wanted = rows.filter(pc.is_valid(at))
            positions = at.drop_null().to_numpy()
            if len(positions):
                rows_ND[positions] = vectors_of(wanted[column])
                odd += int((~np.isfinite(rows_ND[positions]).all(axis=1)).sum())
            found_N[positions] = True
        if odd or not found_N.all():
            raise ExamplesError(
                f"{table.uri}: {odd} of {len(uris)} activations are not finite, {(~found_N).sum()} are missing; "
                "run `tlray verify` on it, or extract it anew"
            )
        self._rows_ND = rows_ND
        self.failed_N = np.zeros(len(uris), bool)
        self.notes: list[str] = []

    def close(self) -> None:
        """It has none."""

    def take(self, positions_B: np.ndarray, epoch: int | None) -> tuple[np.ndarray, np.ndarray]:  # noqa: ARG002
        """Activations_BD, float32."""
        return self._rows_ND[positions_B], np.ones(len(positions_B), bool)
