"""Networks converted to OpenVINO: checked against torch, once a machine, and kept there for every other worker and run.

Shape legend: B images, H height, W width, C channels, D embedding length.
"""

import copy
import logging
import threading
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch

from tlray.errors import TlrayError, first_line
from tlray.models.backbones.images import Backbone
from tlray.models.encoder.engines.node_files import only_one, read_whole, write_whole
from tlray.models.encoder.engines.openvino.model import (
    OpenVinoForward,
    can_compute,
    compile_graph,
    convert,
    count_weighted,
    from_bytes,
    to_bytes,
    with_exact,
)
from tlray.models.encoder.network.exactness import CLOSE_COSINE, least_exact_below, probe_images
from tlray.models.encoder.network.network import Network
from tlray.models.layers.taps import Tappable
from tlray.models.process.device import precision
from tlray.recipe import GOLDEN_TOLERANCE, Recipe, least_cosine

_CPU = torch.device("cpu")
_CONVERSION_ERRORS = (
    RuntimeError,
    AssertionError,
    AttributeError,
    KeyError,
    NotImplementedError,
    OSError,
    TypeError,
    ValueError,
)
"""What export and OpenVINO raise for networks that they cannot convert, and a home folder in which nothing can be kept."""

_first_pass = threading.Lock()
"""OpenVINO's binding learns what NumPy's arrays are in the first pass of a process. Two threads in it at once wait for each
other without end: one holds the interpreter, the other what C++ makes once. So one thread passes before there are several."""

_log = logging.getLogger(__name__)


class NotConvertedError(TlrayError):
    """OpenVINO cannot compute a network as torch does; the message says why."""


class OpenVinoCache:
    """Where the converted network of a recipe is kept on this machine.

    Args:
        path: of the file, whose name says all that the graph depends on.
        recipe: complete, with its weights' hash.
        batch_size: of every pass.
        exact_below: layers that stay at fp32 at least.
    """

    def __init__(self, path: Path, recipe: Recipe, batch_size: int, exact_below: int) -> None:
        self.path = path
        self._recipe = recipe
        self._batch_size = batch_size
        self._exact_below = exact_below

    def open(self, backbone: Backbone, streams: int) -> list[OpenVinoForward]:
        """The network, made first where it is not there; other processes wait meanwhile.

        Args:
            backbone: of the recipe.
            streams: passes that run at once; 0 for one at a time on all cores.

        Returns:
            As many as that, at least one, which share their weights.

        Raises:
            NotConvertedError: OpenVINO cannot compute it here, or computes other numbers.
        """
        compute = self._recipe.precision.compute
        try:
            if not can_compute(compute):
                raise NotConvertedError(f"OpenVINO does not compute {compute} on this processor")
            compiled = from_bytes(self._content(backbone), compute, streams)
            forwards = [OpenVinoForward(compiled) for _ in range(max(streams, 1))]
            with _first_pass:
                forwards[0](torch.zeros((self._batch_size, *self._recipe.preprocessing.crop, 3), dtype=torch.uint8))
        except _CONVERSION_ERRORS as error:
            raise NotConvertedError(first_line(error)) from error
        return forwards

    def _content(self, backbone: Backbone) -> bytes:
        if (there := read_whole(self.path)) is not None:
            return there
        with only_one(self.path.with_suffix(".lock"), wait=True):
            if (there := read_whole(self.path)) is not None:
                return there
            began = time.monotonic()
            content = self._make(backbone)
            write_whole(self.path, content)
        _log.info("converted %s for OpenVINO in %.0f s: %s", self._recipe.backbone, time.monotonic() - began, self.path)
        return content

    def _make(self, backbone: Backbone) -> bytes:
        if isinstance(backbone.module, Tappable):
            raise NotConvertedError("it runs in another runtime already")
        # A copy: torch's encoder, which shares the module's tensors, has them laid out otherwise.
        module = copy.deepcopy(backbone.module).to(memory_format=torch.contiguous_format)
        network = Network(module, self._recipe, "fp32", backbone.pooling, _CPU)
        probes_BHWC = probe_images(*self._recipe.preprocessing.crop)
        with precision(_CPU, "fp32"), torch.inference_mode():
            expected = [features_BD.numpy() for features_BD in network(torch.from_numpy(probes_BHWC))]
        shape_BHWC = (self._batch_size, *probes_BHWC.shape[1:])
        model = convert(network, torch.zeros(shape_BHWC, dtype=torch.uint8))
        compute = self._recipe.precision.compute
        bound = GOLDEN_TOLERANCE["fp32"] if compute == "fp32" else CLOSE_COSINE
        made: dict[int, bytes] = {}

        @cache
        def is_close(exact_below: int) -> bool:
            compiled = compile_graph(with_exact(model, exact_below), compute, 0)
            found = _embed(OpenVinoForward(compiled), probes_BHWC, self._batch_size)
            made[exact_below] = to_bytes(compiled)
            return all(least_cosine(*pair) >= bound for pair in zip(found, expected, strict=True))

        layers = 0 if compute == "fp32" else count_weighted(model)
        exact_below = least_exact_below(layers, is_close, at_least=min(self._exact_below, layers))
        if not is_close(exact_below):
            raise NotConvertedError(f"it computes other numbers than torch: a cosine under {bound} on the probes")
        return made[exact_below]


def _embed(forward: OpenVinoForward, images_BHWC: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """By whole batches, the last one padded."""
    padded_BHWC = np.zeros((-(-len(images_BHWC) // batch_size) * batch_size, *images_BHWC.shape[1:]), np.uint8)
    padded_BHWC[: len(images_BHWC)] = images_BHWC
    batches = [
        [features_BD.numpy() for features_BD in forward(torch.from_numpy(padded_BHWC[start : start + batch_size]))]
        for start in range(0, len(padded_BHWC), batch_size)
    ]
    return [np.concatenate(parts)[: len(images_BHWC)] for parts in zip(*batches, strict=True)]
