"""Which engine computes a network on a CPU: torch as this package runs it, or OpenVINO, by what is faster on this machine."""

import hashlib
import json
import logging
import platform
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch

from tlray.config.commands.extraction import Engine
from tlray.errors import ConfigError
from tlray.extras import require
from tlray.models.backbones.images import Backbone
from tlray.models.encoder.encoder import Encoder, default_batch_size
from tlray.models.encoder.engines.node_files import cache_folder, cpu_flags, only_one
from tlray.models.encoder.network.exactness import choose_exact_below
from tlray.models.process.device import choose_device
from tlray.recipe import golden_images

FORMAT = 1
"""Of the files that are kept; another one where graphs are made in another way."""

TRIAL_SECONDS = 15.0
"""What a conversion and a trial are taken to cost; a generous assumption (docs/benchmarks.md has what was seen)."""

TRIAL_GAIN = 0.15
"""The part of the encoding time that the faster engine is taken to save: less than was seen of most networks."""

LEAST_IMAGES = 1000
"""Fewer are not even timed, so that short runs start as soon as they would without a choice."""

TURNS = 3
TURN_SECONDS = 0.3
"""Of each engine in a trial; the median counts."""

_CPU = torch.device("cpu")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """How an encoder of images is to be made.

    Attributes:
        engine: `auto` takes what a trial on this machine found the faster one, and tries where that pays.
        device: see `Encoder`.
        batch_size: likewise.
        exact_below: likewise.
        lanes: likewise.
        images: that it will get, about; 0 where that is not known.
        folder: for what OpenVINO's networks are kept in; default in the user's cache.
    """

    engine: Engine = "torch"
    device: str = "auto"
    batch_size: int | None = None
    exact_below: int | None = None
    lanes: int | None = None
    images: int = 0
    folder: Path | None = None


def open_image_encoder(backbone: Backbone, wanted: Wanted) -> Encoder:
    """An encoder by the engine that is asked for, or by torch where that one cannot; which and why is logged.

    Raises:
        ConfigError: see `Encoder`; or OpenVINO is asked for and not installed.
    """
    if wanted.engine == "torch" or choose_device(wanted.device) != _CPU:
        return _torchs(backbone, wanted)
    try:
        return _ByOpenVino(backbone, wanted).open()
    except (ImportError, OSError) as error:  # not installed, or nothing can be kept
        if wanted.engine == "openvino":
            require("openvino", "openvino", what="engine openvino")
        _log.info("torch computes %s: OpenVINO is not to be had here (%s)", backbone.recipe.backbone, error)
        return _torchs(backbone, wanted)


def _torchs(backbone: Backbone, wanted: Wanted) -> Encoder:
    return Encoder(
        backbone,
        device=wanted.device,
        batch_size=wanted.batch_size,
        exact_below=wanted.exact_below,
        lanes=wanted.lanes,
    )


class _ByOpenVino:
    """OpenVINO's network of a backbone, where it can be had and is to be used; else torch's."""

    def __init__(self, backbone: Backbone, wanted: Wanted) -> None:
        if wanted.batch_size is not None and wanted.batch_size < 1:
            raise ConfigError(f"batch_size is {wanted.batch_size}, expected 1 or more")
        self._backbone, self._wanted = backbone, wanted
        self._batch_size = wanted.batch_size or default_batch_size(backbone.recipe, _CPU)
        if wanted.exact_below is None:
            self._wanted = wanted = replace(wanted, exact_below=choose_exact_below(backbone, _CPU))
        versions = [FORMAT, version("openvino"), torch.__version__, platform.machine(), cpu_flags()]
        key = [backbone.recipe.recipe_id, wanted.exact_below, self._batch_size, *versions]
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
        folder = wanted.folder or cache_folder("openvino")
        self._path, self._verdict_path = folder / f"{name}.blob", folder / f"{name}.{wanted.lanes or 0}.json"

    def open(self) -> Encoder:
        """As wanted; see `open_image_encoder`."""
        if self._wanted.engine == "openvino":
            return self._converted() or _torchs(self._backbone, self._wanted)
        verdict, ours = self._read_verdict(), None
        if verdict is None and self._wanted.images >= LEAST_IMAGES:
            ours = _torchs(self._backbone, self._wanted)
            if self._pays(ours):
                with only_one(self._verdict_path.with_suffix(".lock"), wait=True):
                    verdict = self._read_verdict() or self._try(ours)
        theirs = None
        if verdict is not None:
            _log.info("%s computes %s on this machine: %s", verdict["engine"], self._backbone.recipe.backbone, verdict["why"])
            theirs = self._converted() if verdict["engine"] == "openvino" else None
        return theirs or ours or _torchs(self._backbone, self._wanted)

    def _converted(self) -> Encoder | None:
        # An extra, and slow to import: not before it is to be used.
        from tlray.models.encoder.engines.openvino.cache import NotConvertedError, OpenVinoCache

        backbone, lanes = self._backbone, self._wanted.lanes or 0
        cache = OpenVinoCache(self._path, backbone.recipe, self._batch_size, self._wanted.exact_below or 0)
        try:
            forwards = cache.open(backbone, lanes)
        except NotConvertedError as error:
            _log.warning("torch computes %s, as OpenVINO does not: %s", backbone.recipe.backbone, error)
            return None
        return Encoder.of_forwards(
            forwards, backbone.recipe, backbone.shapes, _CPU, self._batch_size, threads=lanes, engine="openvino"
        )

    def _pays(self, encoder: Encoder) -> bool:
        """Whether a trial saves more time than it costs, by the encoder's own speed."""
        images_BHWC = self._trial_images()
        encoder.encode(images_BHWC)
        seconds = seconds_of(encoder, images_BHWC) / len(images_BHWC)
        return self._wanted.images * seconds * TRIAL_GAIN > TRIAL_SECONDS

    def _try(self, ours: Encoder) -> dict[str, str]:
        """Let both embed in turns, and keep what came of it."""
        theirs = self._converted()
        if theirs is None:
            return self._keep("torch", "OpenVINO does not")
        images_BHWC = self._trial_images()
        rates: dict[str, list[float]] = {"torch": [], "openvino": []}
        for _ in range(TURNS):
            for name, encoder in (("torch", ours), ("openvino", theirs)):
                rates[name].append(len(images_BHWC) / seconds_of(encoder, images_BHWC))
        found = {name: median(values) for name, values in rates.items()}
        faster = max(found, key=found.__getitem__)
        return self._keep(faster, ", ".join(f"{name} made {rate:.3g} images a second" for name, rate in found.items()))

    def _trial_images(self) -> np.ndarray:
        """A batch for each lane."""
        golden_BHWC = golden_images(*self._backbone.recipe.preprocessing.crop)
        return np.resize(golden_BHWC, (self._batch_size * (self._wanted.lanes or 1), *golden_BHWC.shape[1:]))

    def _keep(self, engine: str, why: str) -> dict[str, str]:
        verdict = {"engine": engine, "why": why}
        unfinished = self._verdict_path.with_suffix(".part")
        unfinished.write_text(json.dumps(verdict))
        unfinished.replace(self._verdict_path)
        return verdict

    def _read_verdict(self) -> dict[str, str] | None:
        try:
            verdict: dict[str, str] = json.loads(self._verdict_path.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return verdict if isinstance(verdict, dict) and {"engine", "why"} <= verdict.keys() else None


def seconds_of(encoder: Encoder, images_BHWC: np.ndarray) -> float:
    """What embedding some images takes, by as many calls as it takes to tell."""
    began, calls = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < TURN_SECONDS or not calls:
        encoder.encode(images_BHWC)
        calls += 1
    return elapsed / calls
