"""What a network is trained on: decoded images of a source, or cached activations of a table.

Shape legend: N examples, B of a batch, H height, W width, C channels, D floats of one activation.
"""

import shutil
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from tlray.errors import ExamplesError
from tlray.lake.source.read_images import read_images
from tlray.lake.source.read_spec import ReadSpec
from tlray.lake.table.table import Table
from tlray.machine.capacity import memory_budget_bytes, usable_cores
from tlray.training.examples.table_vectors import read_rows, read_vectors
from tlray.training.network.inputs.augment import Kind, augment, canvas_of, centre

Loaded = tuple[np.ndarray, Tensor]
"""positions_B of the examples that have an input, and their inputs."""

CHUNK_IMAGES = 16
"""Images that one thread decodes at a time."""

CHECKED_ROWS = 1024
"""Activations that are looked at together."""

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
        """End the threads that read inputs."""
        ...

    def take(self, positions_B: np.ndarray, epoch: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Read the inputs of some examples.

        Args:
            positions_B: of the examples.
            epoch: for augmentation; None for none.

        Returns:
            The positions of those that have an input, in order (an image that cannot be read has none), and their inputs.
        """
        ...


def make_room(
    shape: tuple[int, ...], dtype: type, memory_bytes: int | None, scratch: Path, sharers: int = 1
) -> np.ndarray | None:
    """An array in memory, or in a file where it is too large for that, or none where the disk is too small as well.

    Args:
        shape: of the array.
        dtype: likewise.
        memory_bytes: what it may take; default half of this machine's or container's.
        scratch: folder of the file.
        sharers: processes on this machine that each make one; memory and disk are divided among them.
    """
    size_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if size_bytes <= (memory_bytes or memory_budget_bytes()) // sharers:
        return np.empty(shape, dtype)
    if size_bytes <= _DISK_FRACTION * shutil.disk_usage(scratch).free / sharers:
        return np.lib.format.open_memmap(scratch / "rows.npy", "w+", dtype, shape)
    return None


def read_ahead(
    rows: Rows, shares: Iterable[np.ndarray], epoch: int | None, thread: ThreadPoolExecutor, device: torch.device
) -> Iterator[Loaded]:
    """Bring the inputs of examples onto the device, the next ones read while these are used.

    Args:
        rows: inputs.
        shares: positions_B of the examples of each step.
        epoch: as `Rows.take`.
        thread: that reads.
        device: of the network.
    """

    def read(positions_B: np.ndarray) -> Loaded:
        found_B, inputs = rows.take(positions_B, epoch)
        return found_B, torch.from_numpy(np.ascontiguousarray(inputs))

    waiting = None
    for share in [*shares, None]:
        upcoming = thread.submit(read, share) if share is not None else None
        if waiting is not None:
            positions_B, inputs = waiting.result()
            yield positions_B, inputs.to(device)
        waiting = upcoming


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
        assert spec.preprocessing is not None
        self._crop = spec.preprocessing.crop
        canvas = canvas_of(spec.preprocessing, kinds)
        self._spec = spec.model_copy(update={"preprocessing": canvas})
        self._shape_HWC = (*canvas.crop, 3)
        self._kept_NHWC = make_room((len(items), *self._shape_HWC), np.uint8, memory_bytes, scratch, sharers)
        self._known_N = np.zeros(len(items), bool)
        self.failed_N = np.zeros(len(items), bool)
        self._threads = ThreadPoolExecutor(usable_cores(), "decode")
        self.notes: list[str] = []

    def close(self) -> None:
        """End the threads that decode images."""
        self._threads.shutdown(cancel_futures=True)

    def take(self, positions_B: np.ndarray, epoch: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Decode images, or take them from memory: positions_B, and images_BHWC (uint8) of the recipe's crop."""
        if self._kept_NHWC is None:
            images_BHWC = self._decode(positions_B)
        else:
            missing = positions_B[~self._known_N[positions_B]]
            if len(missing):
                self._kept_NHWC[missing] = self._decode(missing)
                self._known_N[missing] = True
            images_BHWC = self._kept_NHWC[positions_B]
        is_read_B = ~self.failed_N[positions_B]
        if not is_read_B.all():
            images_BHWC, positions_B = images_BHWC[is_read_B], positions_B[is_read_B]
        if epoch is None or not self._kinds:
            return positions_B, centre(images_BHWC, self._crop)
        return positions_B, augment(images_BHWC, positions_B, self._crop, self._kinds, seed=self._seed, epoch=epoch)

    def _decode(self, positions: np.ndarray) -> np.ndarray:
        images_BHWC = np.empty((len(positions), *self._shape_HWC), np.uint8)
        starts = range(0, len(positions), CHUNK_IMAGES)
        chunks = [positions[start : start + CHUNK_IMAGES] for start in starts]
        for start, chunk, (decoded_BHWC, is_read_B) in zip(starts, chunks, self._threads.map(self._fetch, chunks), strict=True):
            images_BHWC[start : start + len(chunk)][is_read_B] = decoded_BHWC
            self.failed_N[chunk] = ~is_read_B
        return images_BHWC

    def _fetch(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fetch and decode images; returns those that could be, and which these are."""
        batches = list(read_images(self._items.take(pa.array(positions)), self._spec))
        self.notes += [note for batch in batches for note in batch.notes]
        is_read_B = np.concatenate([np.asarray(pc.is_null(batch.rows["error"])) for batch in batches])
        return np.concatenate([batch.inputs for batch in batches]), is_read_B


class ActivationRows:
    """Activations of a table, all read when it is made.

    Args:
        table: at the version that is trained on.
        column: of the cut.
        uris: of the N examples.
        memory_bytes: what they may take in memory; default half of this machine's or container's.
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
        rows = read_rows(table)
        at_N = pc.index_in(uris, value_set=rows.uris)
        odd = 0
        if not at_N.null_count:
            read_vectors(rows, column, at_N.to_numpy(), rows_ND)
            blocks = (rows_ND[start : start + CHECKED_ROWS] for start in range(0, len(uris), CHECKED_ROWS))
            odd = sum(int((~np.isfinite(block_BD).all(axis=1)).sum()) for block_BD in blocks)
        if odd or at_N.null_count:
            raise ExamplesError(
                f"{table.uri}: {odd} of {len(uris)} activations are not finite, {at_N.null_count} are missing; "
                "run `tlray verify` on it, or extract it anew"
            )
        self._rows_ND = rows_ND
        self.failed_N = np.zeros(len(uris), bool)
        self.notes: list[str] = []

    def close(self) -> None:
        """Do nothing: activations are read without threads that outlive the reading."""

    def take(self, positions_B: np.ndarray, epoch: int | None) -> tuple[np.ndarray, np.ndarray]:  # noqa: ARG002
        """Take activations_BD, float32; all examples have one."""
        return positions_B, self._rows_ND[positions_B]
