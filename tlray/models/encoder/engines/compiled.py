"""Compiled encoders: made ahead of time, once a machine, and kept there for every other worker and run.

`torch.export` records the network's operations, and inductor (AOTInductor) makes a library of them with the weights inside and
laid out as its kernels want them ("freezing"). What loads it needs neither the network's code nor its weights' file.
"""

import contextlib
import hashlib
import json
import logging
import platform
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tlray.errors import first_line
from tlray.models.encoder.encoder import Encoder, default_batch_size
from tlray.models.encoder.engines.node_files import cache_folder, cpu_flags, only_one
from tlray.models.encoder.network.network import Network
from tlray.models.layers.taps import Tappable
from tlray.recipe import RecipeFile, of_images

COMPILE_SECONDS = 60.0
"""What compiling is taken to cost; a generous assumption (docs/benchmarks.md has what was seen)."""

COMPILE_GAIN = 0.15
"""The part of the encoding time that compiling is taken to save: an assumption, as no GPU has been measured. Without a GPU
nothing is compiled: `tlray.models.encoder.network.packing` has what there is to gain on a CPU."""

_COMPILE_ERRORS = (RuntimeError, AssertionError, AttributeError, KeyError, NotImplementedError, OSError, TypeError, ValueError)
"""What export and inductor raise for networks that they cannot compile and on machines without a C++ compiler, and a home
folder in which nothing can be kept."""

Outcome = Literal["made", "busy", "failed"]

_log = logging.getLogger(__name__)


def pays(images: int, seconds_an_image: float) -> bool:
    """Whether compiling saves more time than it costs.

    Args:
        images: that this encoder still has to embed.
        seconds_an_image: that it needs without.
    """
    return images * seconds_an_image * COMPILE_GAIN > COMPILE_SECONDS


class CompiledCache:
    """Where compiled encoders of a table are kept on this machine.

    Args:
        file: the table's recipe file.
        device: to compute on.
        folder: default in the user's cache; a name says all that the code depends on: recipe, batch, processor, device, torch.
    """

    def __init__(self, file: RecipeFile, device: torch.device, folder: Path | None = None) -> None:
        self._file = file
        self._device = device
        self._batch_size = default_batch_size(of_images(file.recipe), device)
        key = [file.recipe_id, file.exact_below, self._batch_size, torch.__version__, *_machine(device)]
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
        self.path = (folder or cache_folder("compiled")) / f"{name}.pt2"

    @property
    def is_made(self) -> bool:
        """Whether there is one; none is where this process may not look, as in a home folder of somebody else's."""
        try:
            return self.path.exists()
        except OSError:
            return False

    def load(self) -> Encoder | None:
        """The compiled encoder, if there is one; the caller checks it against the golden vectors."""
        if not self.is_made:
            return None
        try:
            recipe, shapes = of_images(self._file.recipe), self._file.shapes
            return Encoder.of_forwards([_Compiled(self.path)], recipe, shapes, self._device, self._batch_size)
        except _COMPILE_ERRORS as error:
            _log.warning("%s cannot be loaded and is compiled anew where that pays: %s", self.path, first_line(error))
            self.drop()
            return None

    def compile(self, network: Network) -> Outcome:
        """Compile a network and keep it, unless another process of this machine is just doing so.

        Args:
            network: of `Network.of`.

        Returns:
            `made`: it is there now. `failed`: the reason was logged, if it is not a network of another runtime.
        """
        if isinstance(network.module, Tappable):
            return "failed"
        try:
            with only_one(self.path.with_suffix(".lock")) as is_ours:
                if not is_ours:
                    return "busy"
                if self.is_made:
                    return "made"
                began = time.monotonic()
                self._make(network)
        except _COMPILE_ERRORS as error:
            _log.warning("%s stays uncompiled: %s", self._file.recipe.backbone, first_line(error))
            return "failed"
        _log.info("compiled %s in %.0f s: %s", self._file.recipe.backbone, time.monotonic() - began, self.path)
        return "made"

    def drop(self) -> None:
        """Remove one that does not compute the table's numbers, where this process may."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _make(self, network: Network) -> None:
        shape_BHWC = (self._batch_size, *of_images(self._file.recipe).preprocessing.crop, 3)
        example_BHWC = torch.zeros(shape_BHWC, dtype=torch.uint8, device=self._device)
        # The threads of each call, not those of this moment, decide how many cores the code uses.
        options: dict[str, Any] = {"freezing": True, "cpp.dynamic_threads": True}
        with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory(dir=self.path.parent) as folder:
            warnings.simplefilter("ignore")
            # Not strict: it runs the network's own code, with the taps' hooks. A network that has not run yet runs to its end.
            program = torch.export.export(network.again().eval(), (example_BHWC,), strict=False)
            package = torch._inductor.aoti_compile_and_package(
                program, package_path=str(Path(folder) / "encoder.pt2"), inductor_configs=options
            )
            Path(package).replace(self.path)


class _Compiled:
    """A compiled library of a network, called as a lane calls a network."""

    def __init__(self, path: Path) -> None:
        self._model = torch._inductor.aoti_load_package(str(path))

    def __call__(self, images_BHWC: Tensor) -> Sequence[Tensor]:
        features: Sequence[Tensor] = self._model(images_BHWC)
        return features


def _machine(device: torch.device) -> list[str]:
    """What compiled code depends on beside the network."""
    if device.type == "cuda":
        return [torch.cuda.get_device_name(device), str(torch.version.cuda)]
    return [platform.machine(), cpu_flags(), torch.backends.cpu.get_cpu_capability()]
