"""A model of ONNX as a module of torch: images in, what its inner values are out.

Shape legend: B images, H height, W width, C channels.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tlray.errors import ConfigError
from tlray.models.libraries.onnx.graph import Graph
from tlray.models.libraries.onnx.images import ImageInput
from tlray.models.libraries.onnx.sessions import Session, Sessions
from tlray.recipe import golden_images, least_cosine

ALIKE_COSINE = 0.99999
"""Least cosine of what images give together to what each gives alone. Chosen: far from what rounding in another order does
to features of 16 bits, and farther from what a value of another image does."""

_WHOLE = 1e-3  # of a level, from its nearest whole number

_log = logging.getLogger(__name__)


class OnnxNetwork(nn.Module):
    """Runs a model; see `tlray.models.layers.taps.Tappable`. Threads are those that torch has in the thread that calls.

    A model for one number of images gets as many at a time. One that gives other numbers for two images than for each alone
    (its exporter wrote the batch into it, or it chooses scales by the batch) gets one image at a time, whatever it takes.

    Args:
        graph: of the model.
        sessions: of the graph; shared by copies of the module.
        batches: taps to the images that may be computed at once; shared likewise.
    """

    def __init__(self, graph: Graph, sessions: Sessions, batches: dict[tuple[str, ...], int | None] | None = None) -> None:
        super().__init__()
        self._graph, self._sessions = graph, sessions
        self._batches = {} if batches is None else batches
        self._session: Session | None = None  # the one in use, which lives on with this module

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnnxNetwork":
        """Another one for another thread; nothing of the model is copied."""
        return OnnxNetwork(self._graph, self._sessions, self._batches).train(self.training)

    def layers(self) -> Sequence[str]:
        """Names of the values that can be tapped; the last one gives the scores."""
        return self._graph.layers

    def describe(self, layer: str) -> str:
        """A layer with the shape that it gives for one image."""
        return self._graph.describe(layer)

    def outputs(self, images_BCHW: Tensor, taps: Sequence[str]) -> Mapping[str, Tensor]:
        """What these layers put out, on the device of the images.

        Raises:
            RuntimeError: the model cannot compute images of this size.
            ConfigError: it takes levels, and these are none.
        """
        key = tuple(taps)
        self._session = self._sessions.get(key, torch.get_num_threads(), images_BCHW.device)
        if key not in self._batches:
            self._batches[key] = self._at_once(self._session)
        values = _run(self._session, as_input(images_BCHW, self._graph.image), self._batches[key], self._graph.image.batch)
        return {tap: torch.from_numpy(value).to(images_BCHW.device) for tap, value in zip(taps, values, strict=True)}

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """The scores of the classifier, before a softmax, B rows."""
        layer = self._graph.scores_layer
        return self.outputs(images_BCHW, [layer])[layer].flatten(1)

    def _at_once(self, session: Session) -> int | None:
        """How many images may be computed at once; None for any number."""
        image = self._graph.image
        if image.batch == 1 or self._graph.calibrates_on_batches:
            return 1
        images = as_input(torch.from_numpy(golden_images(*image.size)[:2]).permute(0, 3, 1, 2), image)
        alone = _run(session, images, 1, image.batch)
        try:
            together = _run(session, images, image.batch, image.batch)
        except RuntimeError:
            together = []
        if together and all(_alike(*pair) for pair in zip(together, alone, strict=True)):
            return image.batch
        _log.warning("%s gives other numbers for several images at once: they are computed one by one", self._graph.file.where)
        return 1


def as_input(images_BCHW: Tensor, image: ImageInput) -> np.ndarray:
    """Images as the model takes them: its layout and type, on the CPU.

    Raises:
        ConfigError: it takes levels, and the values are not whole numbers of its type.
    """
    images = images_BCHW.permute(0, 2, 3, 1) if image.is_nhwc else images_BCHW
    array: np.ndarray = images.contiguous().cpu().numpy()
    if not image.takes_levels or array.dtype == image.dtype:
        return array.astype(image.dtype, copy=False)
    levels, limits = array.round(), np.iinfo(image.dtype)
    if np.abs(levels - array).max(initial=0) > _WHOLE or levels.min() < limits.min or levels.max() > limits.max:
        raise ConfigError(
            f"the model takes levels, {image.dtype}, and normalises them itself, but preprocessing gives other values; use "
            f"preprocessing.scale {[0, 255] if limits.min == 0 else [-128, 127]}, mean [0, 0, 0], std [1, 1, 1]"
        )
    return levels.astype(image.dtype)


def _run(session: Session, images: np.ndarray, at_once: int | None, exactly: int | None) -> list[np.ndarray]:
    """Compute images, some at once; where the model takes an exact number, the last one is repeated until there are so many.

    So an image that is computed by itself has none beside it but itself.
    """
    if at_once is None:
        return session.run(images)
    parts = []
    for start in range(0, len(images), at_once):
        some = images[start : start + at_once]
        missing = 0 if exactly is None else exactly - len(some)
        if missing:
            some = np.concatenate([some, np.repeat(some[-1:], missing, axis=0)])
        values = session.run(some)
        parts.append([value[: len(value) - missing] if value.ndim else value[None] for value in values])
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def _alike(together: np.ndarray, alone: np.ndarray) -> bool:
    if together.shape != alone.shape or together.ndim < 1:
        return False
    if np.array_equal(together, alone):
        return True
    return least_cosine(together.reshape(len(together), -1), alone.reshape(len(alone), -1)) >= ALIKE_COSINE
