"""Lanes: where batches run, one forward pass after the other, with the buffers that they need.

Shape legend: B images, H height, W width, C channels, D embedding length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

Forward = Callable[[Tensor], Sequence[Tensor]]
"""Images_BHWC, uint8, on the device, to features_BD, float32, one tensor a column."""

Results = Callable[[], list[np.ndarray]]
"""Waits for a batch and gives its features_BD, without the rows of padding."""


class Lane:
    """On the CPU (and MPS): a batch is finished when it was submitted.

    Attributes:
        depth: batches that can be under way at once.
    """

    depth = 1

    def __init__(self, forward: Forward, device: torch.device, shape_BHWC: Sequence[int]) -> None:
        self.forward = forward
        self._device = device
        # Reused: one short copy a batch, whoever owns the images.
        self._staging_BHWC = torch.zeros(tuple(shape_BHWC), dtype=torch.uint8)

    def submit(self, images_BHWC: np.ndarray, batch_size: int) -> Results:
        """Start a forward pass over a batch.

        Args:
            images_BHWC: uint8, at most `batch_size` of them.
            batch_size: the pass has this many; what is missing is padding.
        """
        _stage(self._staging_BHWC[:batch_size], images_BHWC)
        with torch.inference_mode():
            features = self.forward(self._staging_BHWC[:batch_size].to(self._device))
            rows = [features_BD[: len(images_BHWC)].cpu().numpy() for features_BD in features]
        return lambda: rows


@dataclass
class _Slot:
    """Page-locked memory on the host and what tells when the device has read or filled it."""

    pixels_BHWC: Tensor
    outputs: list[Tensor] = field(default_factory=list)
    done: Any = None


class CudaLane(Lane):
    """On a GPU: while a batch is computed, the next one is copied there on a stream of its own, and the last one back."""

    depth = 2

    def __init__(self, forward: Forward, device: torch.device, shape_BHWC: Sequence[int]) -> None:
        self.forward = forward
        self._device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._slots = [_Slot(torch.zeros(tuple(shape_BHWC), dtype=torch.uint8, pin_memory=True)) for _ in range(self.depth)]
        self._next = 0

    def submit(self, images_BHWC: np.ndarray, batch_size: int) -> Results:
        """Start a batch; at most `depth` may be under way."""
        slot = self._slots[self._next]
        self._next = (self._next + 1) % self.depth
        _stage(slot.pixels_BHWC[:batch_size], images_BHWC)
        compute = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._copies):
            pixels_BHWC = slot.pixels_BHWC[:batch_size].to(self._device, non_blocking=True)
        compute.wait_stream(self._copies)
        pixels_BHWC.record_stream(compute)
        with torch.inference_mode():
            features = self.forward(pixels_BHWC)
            if [output.shape for output in slot.outputs] != [features_BD.shape for features_BD in features]:
                slot.outputs = [torch.empty(features_BD.shape, pin_memory=True) for features_BD in features]
            for output_BD, features_BD in zip(slot.outputs, features, strict=True):
                output_BD.copy_(features_BD, non_blocking=True)
        slot.done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        slot.done.record(compute)

        def results() -> list[np.ndarray]:
            slot.done.synchronize()
            return [output_BD[: len(images_BHWC)].numpy().copy() for output_BD in slot.outputs]

        return results


def make_lane(forward: Forward, device: torch.device, shape_BHWC: Sequence[int]) -> Lane:
    """Make the lane that suits a device."""
    return (CudaLane if device.type == "cuda" else Lane)(forward, device, shape_BHWC)


def _stage(staging_BHWC: Tensor, images_BHWC: np.ndarray) -> None:
    staging_BHWC.numpy()[: len(images_BHWC)] = images_BHWC
    staging_BHWC[len(images_BHWC) :] = 0
