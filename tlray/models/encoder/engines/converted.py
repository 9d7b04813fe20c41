"""Networks converted for engines beside torch: checked against it, once a machine, and kept there for every worker and run.

Shape legend: B images, H height, W width, C channels, D embedding length.
"""

import copy
import logging
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tlray.errors import TlrayError, first_line
from tlray.models.backbones.images import Backbone
from tlray.models.backbones.network_input import to_network_input, to_network_input_of_graph
from tlray.models.encoder.engines.node_files import only_one, read_whole, write_whole
from tlray.models.encoder.engines.onnxruntime.export import EXPORT_ERRORS
from tlray.models.encoder.lanes import Forward
from tlray.models.encoder.network.exactness import CLOSE_COSINE, least_exact_below, probe_images
from tlray.models.encoder.network.network import Network
from tlray.models.layers.taps import Tappable
from tlray.models.process.device import precision
from tlray.recipe import GOLDEN_TOLERANCE, Compute, Recipe, least_cosine

_CPU = torch.device("cpu")
_CONVERSION_ERRORS = (*EXPORT_ERRORS, ImportError, OSError)
"""What export and engines raise for networks that they cannot convert, and a home folder in which nothing can be kept."""

_log = logging.getLogger(__name__)


class NotConvertedError(TlrayError):
    """An engine cannot compute a network as torch does; the message says why."""


class Graph(Protocol):
    """A network as an engine has it, of which what computes at any precision is made."""

    def count_layers(self) -> int:
        """Count the layers that can stay at fp32."""

    def at(self, compute: Compute, exact_below: int) -> bytes:
        """What is kept on the machine.

        Args:
            compute: that the engine can compute.
            exact_below: so many layers stay at fp32, the first in the graph's order.
        """


class Runtime(Protocol):
    """An engine beside torch, which computes converted networks.

    Attributes:
        title: its name, for people.
    """

    title: str

    def can_compute(self, compute: Compute) -> bool:
        """Whether it computes so on this processor without emulating it."""

    def convert(self, network: Network, example_BHWC: Tensor) -> Graph:
        """Convert a network of fp32 on the CPU, for as many images as the example has, uint8."""

    def open(self, content: bytes, compute: Compute, lanes: int) -> Sequence[Forward]:
        """What a graph's `at` gave, ready to run.

        Args:
            content: of this version on a machine of this kind.
            compute: likewise.
            lanes: passes that run at once, one core each; 0 for one at a time on all cores.

        Returns:
            As many as that, at least one, which share their weights.
        """


class ConvertedCache:
    """Where the converted network of a recipe is kept on this machine.

    Args:
        path: of the file, whose name says all that the graph depends on.
        runtime: the engine.
        recipe: complete, with its weights' hash.
        compute: what the recipe's precision is computed as here.
        batch_size: of every pass.
        exact_below: layers that stay at fp32 at least.
    """

    def __init__(
        self, path: Path, runtime: Runtime, recipe: Recipe, compute: Compute, batch_size: int, exact_below: int
    ) -> None:
        self.path = path
        self._runtime = runtime
        self._recipe, self._compute = recipe, compute
        self._batch_size = batch_size
        self._exact_below = exact_below

    def open(self, backbone: Backbone, lanes: int) -> Sequence[Forward]:
        """The network, made first where it is not there; other processes wait meanwhile.

        Args:
            backbone: of the recipe.
            lanes: see `Runtime.open`.

        Raises:
            NotConvertedError: the engine cannot compute it here, or computes other numbers.
        """
        runtime, compute = self._runtime, self._compute
        try:
            if not runtime.can_compute(compute):
                raise NotConvertedError(f"{runtime.title} does not compute {compute} on this processor")
            return runtime.open(self._content(backbone), compute, lanes)
        except _CONVERSION_ERRORS as error:
            raise NotConvertedError(first_line(error)) from error

    def _content(self, backbone: Backbone) -> bytes:
        if (there := read_whole(self.path)) is not None:
            return there
        with only_one(self.path.with_suffix(".lock"), wait=True):
            if (there := read_whole(self.path)) is not None:
                return there
            began = time.monotonic()
            content = self._make(backbone)
            write_whole(self.path, content)
        seconds = time.monotonic() - began
        _log.info("converted %s for %s in %.0f s: %s", self._recipe.backbone, self._runtime.title, seconds, self.path)
        return content

    def _make(self, backbone: Backbone) -> bytes:
        if isinstance(backbone.module, Tappable):
            raise NotConvertedError("it runs in another runtime already")
        # A copy: torch's encoder, which shares the module's tensors, has them laid out otherwise.
        module = copy.deepcopy(backbone.module).to(memory_format=torch.contiguous_format)
        network, of_graph = (
            Network(module, self._recipe, "fp32", backbone.pooling, _CPU, prepare)
            for prepare in (to_network_input, to_network_input_of_graph)
        )
        probes_BHWC = probe_images(*self._recipe.preprocessing.crop)
        with precision(_CPU, "fp32"), torch.inference_mode():
            expected = [features_BD.numpy() for features_BD in network(torch.from_numpy(probes_BHWC))]
        graph = self._runtime.convert(of_graph, torch.zeros((self._batch_size, *probes_BHWC.shape[1:]), dtype=torch.uint8))
        compute = self._compute
        bound = GOLDEN_TOLERANCE["fp32"] if compute == "fp32" else CLOSE_COSINE
        made: dict[int, bytes] = {}

        @cache
        def is_close(exact_below: int) -> bool:
            content = made[exact_below] = graph.at(compute, exact_below)
            found = _embed(self._runtime.open(content, compute, 0)[0], probes_BHWC, self._batch_size)
            return all(least_cosine(*pair) >= bound for pair in zip(found, expected, strict=True))

        layers = 0 if compute == "fp32" else graph.count_layers()
        exact_below = least_exact_below(layers, is_close, at_least=min(self._exact_below, layers))
        if not is_close(exact_below):
            raise NotConvertedError(f"it computes other numbers than torch: a cosine under {bound} on the probes")
        return made[exact_below]


def _embed(forward: Forward, images_BHWC: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """By whole batches, the last one padded."""
    padded_BHWC = np.zeros((-(-len(images_BHWC) // batch_size) * batch_size, *images_BHWC.shape[1:]), np.uint8)
    padded_BHWC[: len(images_BHWC)] = images_BHWC
    batches = [
        [features_BD.numpy() for features_BD in forward(torch.from_numpy(padded_BHWC[start : start + batch_size]))]
        for start in range(0, len(padded_BHWC), batch_size)
    ]
    return [np.concatenate(parts)[: len(images_BHWC)] for parts in zip(*batches, strict=True)]
