"""The encoder: batches of RGB uint8 images to embeddings, on the CPU or an accelerator; plain torch, no Ray.

Shape legend: B images, H height, W width, C channels, D embedding length.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from queue import SimpleQueue

import numpy as np
import torch

from tlray.errors import ConfigError
from tlray.models.backbones.images import Backbone
from tlray.models.encoder.lanes import Forward, Lane, Results, make_lane
from tlray.models.encoder.network.exactness import choose_exact_below
from tlray.models.encoder.network.network import Folded
from tlray.models.process.device import (
    check_batch_size,
    choose_device,
    computes_as,
    on_one_core,
    precision,
    settle_compute,
    threads_of_one_core,
)
from tlray.recipe import GOLDEN_IMAGE_COUNT, Compute, Precision, Recipe

_BATCH_PIXELS = {"cuda": 256 * 224**2, "mps": 64 * 224**2, "cpu": 8 * 224**2}
"""Pixels in a batch: 256, 64 and 8 images of 224 pixels. On GPUs a rule of thumb: enough to keep the device busy, few enough
that the activations of common networks fit many times over. On CPUs so that the lanes' activations stay in the
caches; 8 was the fastest of 2, 4, 8 and 16 (docs/benchmarks.md)."""

TURN_IMAGES = 32
"""Images that a thread decodes and embeds in one turn on a core. Larger turns were no faster (docs/benchmarks.md), and hold
more pixels: 5 MB at this size, for images of 224 pixels."""

SHARE_IMAGES = 8
"""Images that a lane takes at a time, at most, where no thread keeps one: to hand them out one by one costs a part of what
small networks take (docs/benchmarks.md)."""

Keep = Callable[[int, list[np.ndarray]], None]
"""Takes the features_BD of a batch, one array a tap, and the number of its first image."""


class Encoder:
    """Embeds images by a backbone's recipe; may be called from several threads.

    Its network is a copy of the backbone's with the batch norms folded into the convolutions
    (`tlray.models.encoder.network.folding`), on a CPU
    with these as oneDNN runs them best (`tlray.models.encoder.network.packing`). The
    recipe's precision.compute means: `fp32`, all of it, without TF32; `bf16` and `fp16`, what `torch.autocast` computes so,
    with weights rounded once and kernel by kernel (`tlray.models.encoder.network.precision`). Where the device has no
    arithmetic for these, all of it is computed at fp32 (`tlray.models.process.device.computes_as`), which is logged; and so
    it is where `computes` says so.

    Args:
        backbone: on the CPU the copy shares its tensors (their memory layout becomes channels_last); their values stay.
        device: `auto` (CUDA, else Apple's MPS, else the CPU) or a name that torch knows.
        batch_size: images in one forward pass; default by device and input size. Every pass has this many, the last one
            being padded, so that an embedding does not depend on how many images are asked for; for single images ask
            for 1. It is halved where the device's memory is too small.
        exact_below: the table's (`RecipeFile.exact_below`); None chooses by `choose_exact_below`.
        lanes: on a CPU, batches that run at once, one core each; None for one batch at a time on all cores. Lanes make more of
            the cores: threads that share each layer wait for each other after it, all the more beside threads that decode.
        computes: the number format, the recipe's or fp32; None for the recipe's where the device has arithmetic for it.
        folded: the same backbone, packed, where it is folded already, for a recipe of any precision.

    Attributes:
        engine: what computes: `torch`, `openvino` or `onnxruntime` (`tlray.models.encoder.engines.choice`).
        computes: the number format in which it does.
        trial: what a trial on this machine found, where one chose the engine.

    Raises:
        ConfigError: there is no such device, a batch size under 1, or a recipe at int8 (see `tlray.models.encoder.int8`).
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        device: str = "auto",
        batch_size: int | None = None,
        exact_below: int | None = None,
        lanes: int | None = None,
        computes: Compute | None = None,
        folded: Folded | None = None,
    ) -> None:
        recipe = backbone.recipe
        chosen = choose_device(device)
        check_batch_size(batch_size)
        if recipe.precision.compute == "int8":
            raise ConfigError(f"torch does not compute {recipe.backbone} at int8; use recipe.precision.compute fp32 or bf16")
        self.computes = computes or settle_compute(chosen, recipe.precision.compute)
        folded = folded or Folded.of(backbone, packed=True)
        if exact_below is None:
            exact_below = 0 if self.computes == "fp32" else choose_exact_below(backbone, chosen, folded)
        network = replace(folded, recipe=recipe).network(chosen, self.computes, exact_below)
        threads = lanes if lanes is not None and chosen.type == "cpu" else 0
        forwards = [network, *(network.again() for _ in range(threads - 1))]
        self._start(recipe, backbone.shapes, chosen, batch_size or default_batch_size(recipe, chosen), forwards, threads)

    @classmethod
    def of_forwards(
        cls,
        forwards: Sequence[Forward],
        recipe: Recipe,
        shapes: Mapping[str, tuple[int, ...]],
        device: torch.device,
        batch_size: int,
        *,
        threads: int = 0,
        engine: str = "torch",
        computes: Compute | None = None,
    ) -> "Encoder":
        """An encoder whose network is a function, as compiled code is.

        Args:
            forwards: one, or one a lane; each takes exactly `batch_size` images.
            recipe: of the network.
            shapes: of its embeddings, by table column.
            device: where they compute.
            batch_size: fixed.
            threads: lanes; 0 for one batch at a time.
            engine: that computes; another one than torch has threads of its own.
            computes: see `Encoder`.
        """
        encoder = cls.__new__(cls)
        encoder.computes = computes or computes_as(device, recipe.precision.compute)
        encoder._start(recipe, shapes, device, batch_size, forwards, threads)
        if engine != "torch":
            encoder.engine, encoder._clock = engine, time.perf_counter
        return encoder

    def _start(
        self,
        recipe: Recipe,
        shapes: Mapping[str, tuple[int, ...]],
        device: torch.device,
        batch_size: int,
        forwards: Sequence[Forward],
        threads: int,
    ) -> None:
        self.engine, self.trial = "torch", ""
        self.device = device
        self.batch_size = batch_size
        self._clock = time.thread_time if threads else time.perf_counter
        self._recipe = recipe
        self._shapes = shapes
        shape_BHWC = (batch_size, *recipe.preprocessing.crop, 3)
        self._lanes: SimpleQueue[Lane] = SimpleQueue()
        for forward in forwards:
            self._lanes.put(make_lane(forward, device, shape_BHWC))
        self._threads = threads
        self._pool = threads_of_one_core(threads, "encode") if threads else None
        self._held = threading.local()  # `lane`: of a thread whose turn it is

    def encode(self, images_BHWC: np.ndarray) -> dict[str, np.ndarray]:
        """Embed images, any number of them.

        Args:
            images_BHWC: uint8 RGB of the recipe's crop, any number of them; not changed, and may be read-only.

        Returns:
            Per table column features_BD, float32; what is not finite is passed on.

        Raises:
            ConfigError: images of another type or shape, a precision that the device cannot compute, or a device whose
                memory is too small for one image.
        """
        return self.encode_timed(images_BHWC)[0]

    def encode_timed(self, images_BHWC: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        """As `encode`, with the seconds for which the device was busy with it: with lanes, of a core."""
        self._check(images_BHWC)
        count = len(images_BHWC)
        columns = {name: np.empty((count, math.prod(shape)), np.float32) for name, shape in self._shapes.items()}
        rows_of_taps = [columns[self._recipe.columns[tap]] for tap in self._recipe.taps]

        def keep(start: int, rows: list[np.ndarray]) -> None:
            for column_BD, rows_BD in zip(rows_of_taps, rows, strict=True):
                column_BD[start : start + len(rows_BD)] = rows_BD

        def run(lane: Lane, start: int, stop: int) -> float:
            began = self._clock()
            self._run_in_turn(lane, images_BHWC[:stop], start, keep)
            return self._clock() - began

        def run_share(start: int) -> float:
            with self._lane() as lane:
                return run(lane, start, start + share)

        with precision(self.device, self.computes):
            held: Lane | None = getattr(self._held, "lane", None)
            if held is not None:
                return columns, run(held, 0, count)
            if self._pool is not None:
                share = self._share(count)
                return columns, sum(self._pool.map(run_share, range(0, count, share)))
            with self._lane() as lane:
                return columns, run(lane, 0, count)

    def _share(self, count: int) -> int:
        """Images that a lane takes at a time: whole batches, at least one, in as many shares for each lane."""
        batches = max(-(-count // self.batch_size), 1)
        most = -(-SHARE_IMAGES // self.batch_size)
        shares = self._threads * -(-batches // (self._threads * most))
        return self.batch_size * -(-batches // shares)

    @property
    def computed_by(self) -> str:
        """The engine, with its number format where that is not the recipe's."""
        return self.engine if self.computes == self._recipe.precision.compute else f"{self.engine} at {self.computes}"

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a core, and keep it: for other work of this thread, too, which embeds on this lane meanwhile.

        Without lanes it never waits, and changes nothing. With them this thread goes on with one thread of torch's.
        """
        if self._pool is None:
            yield
            return
        on_one_core()
        with self._lane() as lane:
            self._held.lane = lane
            try:
                yield
            finally:
                del self._held.lane

    @property
    def turn_images(self) -> int | None:
        """Images to work on in a turn: whole batches, enough that threads seldom change. None without lanes."""
        return -(-TURN_IMAGES // self.batch_size) * self.batch_size if self._pool is not None else None

    @contextmanager
    def _lane(self) -> Iterator[Lane]:
        lane = self._lanes.get()
        try:
            yield lane
        finally:
            self._lanes.put(lane)

    def _run_in_turn(self, lane: Lane, images_BHWC: np.ndarray, start: int, keep: Keep) -> None:
        """One batch after the other from an image on, as many of them under way as the lane can hold."""
        under_way: deque[tuple[int, Results]] = deque()
        while start < len(images_BHWC) or under_way:
            if start < len(images_BHWC) and len(under_way) < lane.depth:
                batch_BHWC = images_BHWC[start : start + self.batch_size]
                try:
                    under_way.append((start, lane.submit(batch_BHWC, self.batch_size)))
                except torch.OutOfMemoryError as error:
                    while under_way:
                        _collect(under_way, keep)
                    self._halve_batch(error)
                else:
                    start += len(batch_BHWC)
            else:
                _collect(under_way, keep)

    def _check(self, images_BHWC: np.ndarray) -> None:
        expected = (*self._recipe.preprocessing.crop, 3)
        if images_BHWC.dtype != np.uint8 or images_BHWC.ndim != 4 or images_BHWC.shape[1:] != expected:
            raise ConfigError(
                f"images are {images_BHWC.dtype} {images_BHWC.shape}, expected uint8 (B, {', '.join(map(str, expected))})"
            )

    def _halve_batch(self, error: torch.OutOfMemoryError) -> None:
        if self.batch_size == 1:
            height, width = self._recipe.preprocessing.crop
            raise ConfigError(
                f"{self.device} has no memory for {self._recipe.backbone} on one {height}x{width} image: {error}; "
                "use a larger device, a smaller crop or a smaller backbone"
            ) from error
        self.batch_size //= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _collect(under_way: deque[tuple[int, Results]], keep: Keep) -> None:
    start, results = under_way.popleft()
    keep(start, results())


def default_batch_size(recipe: Recipe, device: torch.device) -> int:
    """How many images go through one forward pass, by the device and the size of the images."""
    return max(1, _BATCH_PIXELS.get(device.type, _BATCH_PIXELS["cpu"]) // math.prod(recipe.preprocessing.crop))


def at_fp32(backbone: Backbone, folded: Folded | None = None) -> Encoder:
    """An encoder of the same network at fp32 on the CPU, whatever the recipe's precision is; see `Encoder` for `folded`."""
    fp32 = replace(backbone, recipe=recipe_at_fp32(backbone.recipe))
    return Encoder(fp32, device="cpu", batch_size=GOLDEN_IMAGE_COUNT, folded=folded)


def recipe_at_fp32(recipe: Recipe) -> Recipe:
    """The same recipe at fp32, whatever its precision is."""
    return recipe.model_copy(update={"precision": Precision(compute="fp32", storage=recipe.precision.storage)})
