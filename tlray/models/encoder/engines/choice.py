"""Which engine computes a network on a CPU: torch as this package runs it, or another one that is installed and faster here.

Recipes of 16 bits are computed at fp32 where that is faster, as processors differ: some have instructions for 16 bits that do
half as many multiplications a cycle, and libraries lack kernels of 16 bits for some layers (docs/benchmarks.md has figures).
The numbers of fp32 are closer to what the recipe stands for than any rounding of theirs.
"""

import hashlib
import json
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from tlray.config.commands.extraction import Engine
from tlray.extras import require
from tlray.machine.capacity import usable_cores
from tlray.models.backbones.images import Backbone
from tlray.models.encoder.encoder import Encoder, default_batch_size
from tlray.models.encoder.engines.converted import ConvertedCache, NotConvertedError, Runtime
from tlray.models.encoder.engines.node_files import cache_folder, cpu_flags, only_one
from tlray.models.encoder.engines.trial import Verdict, Way, pace_of, try_all
from tlray.models.encoder.network.exactness import choose_exact_below
from tlray.models.layers.taps import Tappable
from tlray.models.process.device import check_batch_size, choose_device, computes_as
from tlray.recipe import Compute, golden_images

FORMAT = 5
"""Of the files that are kept; another one where graphs are made in another way."""

TRIAL_SECONDS = 15.0
"""What a conversion and a trial are taken to cost, for each engine beside torch; a generous assumption (docs/benchmarks.md has
what was seen)."""

FORMAT_SECONDS = 3.0
"""What a trial of fp32 by torch is taken to cost for a recipe of 16 bits: to make the network again, and have it compute."""

TRIAL_GAIN = 0.15
"""The part of the encoding time that the fastest way is taken to save: less than was seen of most networks."""

WORTH_SHARE = 0.75
"""Of torch's speed at its faster number format, what it must make at another one for other engines to be tried at that too.
Conversions at 16 bits take the longest, as layers are chosen for them."""

LEAST_IMAGES = 1000
"""Fewer are not even timed, so that short runs start as soon as they would without a choice."""


@dataclass(frozen=True)
class _Other:
    """An engine beside torch, and what it needs.

    Attributes:
        extra: that installs it.
        packages: that it needs, by the names of their modules.
        computes: what it may compute; whether this processor does, it says itself.
        batch_sizes: images in a pass that are tried beside the usual number.
    """

    extra: str
    packages: tuple[str, ...]
    computes: tuple[Compute, ...]
    batch_sizes: tuple[int, ...] = ()

    @property
    def versions(self) -> tuple[str, ...] | None:
        """Of its packages; None where one is missing."""
        try:
            return tuple(map(_version, self.packages))
        except PackageNotFoundError:
            return None


_OTHERS: Mapping[Engine, _Other] = {
    "openvino": _Other("openvino", ("openvino",), ("fp32", "bf16"), (2,)),
    "onnxruntime": _Other("onnx", ("onnxruntime", "onnx", "onnxscript"), ("fp32",), (2,)),
}

_CPU = torch.device("cpu")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """How an encoder of images is to be made.

    Attributes:
        engine: `auto` takes what a trial on this machine found the fastest, and tries where that pays.
        device: see `Encoder`.
        batch_size: likewise.
        exact_below: likewise.
        lanes: likewise.
        images: that it will get, about; 0 where that is not known.
        folder: for what converted networks are kept in; default in the user's cache.
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
        ConfigError: see `Encoder`; or the engine that is asked for is not installed.
    """
    if wanted.engine == "torch" or choose_device(wanted.device) != _CPU:
        return _torchs(backbone, wanted)
    check_batch_size(wanted.batch_size)
    if wanted.engine != "auto" and (other := _OTHERS[wanted.engine]).versions is None:
        require(other.extra, *other.packages, what=f"engine {wanted.engine}")
    try:
        return _Choice(backbone, wanted).open()
    except OSError as error:
        _log.warning("torch computes %s: nothing can be kept on this machine (%s)", backbone.recipe.backbone, error)
        return _torchs(backbone, wanted)


def _torchs(backbone: Backbone, wanted: Wanted, computes: Compute | None = None) -> Encoder:
    return Encoder(
        backbone,
        device=wanted.device,
        batch_size=wanted.batch_size,
        exact_below=wanted.exact_below,
        lanes=wanted.lanes,
        computes=computes,
    )


class _Choice:
    """Engines for one backbone on this machine's CPU."""

    def __init__(self, backbone: Backbone, wanted: Wanted) -> None:
        compute = computes_as(_CPU, backbone.recipe.precision.compute)
        if wanted.exact_below is None or compute == "fp32":
            wanted = replace(wanted, exact_below=0 if compute == "fp32" else choose_exact_below(backbone, _CPU))
        self._backbone, self._wanted = backbone, wanted
        self._formats: tuple[Compute, ...] = tuple(dict.fromkeys((compute, "fp32")))
        self._batch_size = wanted.batch_size or default_batch_size(backbone.recipe, _CPU)
        self._others = [name for name, other in _OTHERS.items() if other.versions is not None]
        self._folder = wanted.folder or cache_folder("engines")

    def open(self) -> Encoder:
        """Open the encoder that is wanted; see `open_image_encoder`."""
        if (engine := self._wanted.engine) != "auto":
            computes = next(each for each in self._formats if each in _OTHERS[engine].computes)
            if computes != (compute := self._formats[0]):
                what = f"so {self._backbone.recipe.backbone} is computed at {computes}"
                _log.info("%s does not compute %s here, %s", engine, compute, what)
            return self._by(Way(engine, self._batch_size, computes))
        if isinstance(self._backbone.module, Tappable):
            return self._torchs()
        verdict, ours = self._verdict()
        if verdict is None:
            return ours or self._torchs()
        encoder = (ours if verdict.way == self._usual else None) or self._by(verdict.way)
        _log.info("%s computes %s on this machine; %s", encoder.computed_by, self._backbone.recipe.backbone, verdict.why)
        encoder.trial = verdict.why
        return encoder

    @property
    def _usual(self) -> Way:
        """What computes without a trial."""
        return Way("torch", self._batch_size, self._formats[0])

    def _by(self, way: Way) -> Encoder:
        """The encoder of a way; torch's usual one where its engine cannot, which is said."""
        if way.engine == "torch":
            return self._torchs(way.computes)
        try:
            return self._converted(way)
        except NotConvertedError as error:
            if self._wanted.engine != "auto" and isinstance(error.__cause__, ImportError):
                require(_OTHERS[way.engine].extra, *_OTHERS[way.engine].packages, what=f"engine {way.engine}")
            _log.warning("torch computes %s, as %s does not: %s", self._backbone.recipe.backbone, way.engine, error)
            return self._torchs()

    def _torchs(self, computes: Compute | None = None) -> Encoder:
        return _torchs(self._backbone, self._wanted, computes)

    def _verdict(self) -> tuple[Verdict | None, Encoder | None]:
        """What this machine found, or finds now where that pays; with torch's encoder where it was made for that.

        Where other engines do not pay, number formats may, which need no conversion. One process of a machine tries, while the
        others wait and leave the cores alone.
        """
        ours: Encoder | None = None
        for others in dict.fromkeys((tuple(self._others), ())):
            path = self._path(self._wanted.batch_size, self._wanted.lanes or 0, *map(_identity, others)).with_suffix(".json")
            if (verdict := Verdict.read(path)) is None and self._wanted.images >= LEAST_IMAGES:
                with only_one(path.with_suffix(".lock"), wait=True):
                    if (verdict := Verdict.read(path)) is None:
                        ours = ours or self._torchs()
                        verdict = self._try(ours, others).keep(path) if self._pays(ours, others) else None
            if verdict is not None:
                return verdict, ours
        return None, ours

    def _pays(self, ours: Encoder, others: Sequence[Engine]) -> bool:
        """Whether a trial saves more time than it costs, by torch's own speed."""
        if not others and len(self._formats) == 1:
            return False
        cost_seconds = TRIAL_SECONDS * len(others) + FORMAT_SECONDS * (len(self._formats) - 1)
        return self._wanted.images / self._rate(ours) * TRIAL_GAIN > cost_seconds

    def _try(self, ours: Encoder, others: Sequence[Engine]) -> Verdict:
        """Have all ways embed that are worth a try, and find the fastest."""
        encoders = {replace(self._usual, computes=computes): self._torchs(computes) for computes in self._formats[1:]}
        encoders[self._usual] = ours
        rates = {way.computes: self._rate(encoder) for way, encoder in encoders.items()}
        notes = []
        for computes in self._formats:
            able = [engine for engine in others if computes in _OTHERS[engine].computes]
            if able and rates[computes] < WORTH_SHARE * max(rates.values()):
                notes.append(f"{computes} by {' and '.join(able)} was not tried, as torch shows it slow here")
                continue
            for engine in able:
                more = _OTHERS[engine].batch_sizes if self._wanted.batch_size is None else ()
                try:
                    for batch_size in sorted({self._batch_size, *more}):
                        way = Way(engine, batch_size, computes)
                        encoders[way] = self._converted(way)
                except NotConvertedError as error:
                    notes.append(f"{engine} cannot at {computes}: {error}")
        verdict = try_all(encoders, self._trial_images(), self._cores)
        return replace(verdict, why="; ".join([verdict.why, *notes]))

    def _rate(self, encoder: Encoder) -> float:
        """Images a second of a first short turn."""
        images_BHWC = self._trial_images()
        encoder.encode(images_BHWC)
        return pace_of(encoder, images_BHWC, self._cores).rate

    def _converted(self, way: Way) -> Encoder:
        backbone, lanes = self._backbone, self._wanted.lanes or 0
        exact_below = 0 if way.computes == "fp32" else self._wanted.exact_below or 0
        path = self._path(way.batch_size, way.computes, *_identity(way.engine)).with_suffix(".blob")
        runtime = _runtime(way.engine)
        cache = ConvertedCache(path, runtime, backbone.recipe, way.computes, way.batch_size, exact_below)
        return Encoder.of_forwards(
            cache.open(backbone, lanes),
            backbone.recipe,
            backbone.shapes,
            _CPU,
            way.batch_size,
            threads=lanes,
            engine=way.engine,
            computes=way.computes,
        )

    @property
    def _cores(self) -> int:
        return min(self._wanted.lanes or torch.get_num_threads(), usable_cores())

    def _trial_images(self) -> np.ndarray:
        """Images that the engines are tried on, a batch for each lane."""
        golden_BHWC = golden_images(*self._backbone.recipe.preprocessing.crop)
        return np.resize(golden_BHWC, (self._batch_size * (self._wanted.lanes or 1), *golden_BHWC.shape[1:]))

    def _path(self, *rest: object) -> Path:
        """Of a file whose name says all that it depends on."""
        machine = [torch.__version__, platform.machine(), cpu_flags()]
        key = [FORMAT, self._backbone.recipe.recipe_id, self._wanted.exact_below, *machine, *rest]
        return self._folder / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]


def _version(package: str) -> str:
    """Of a package, under the name that it has for GPUs too."""
    try:
        return version(package)
    except PackageNotFoundError:
        return version(f"{package}-gpu")


def _identity(engine: Engine) -> list[object]:
    """What files of an engine depend on."""
    return [engine, _OTHERS[engine].versions]


def _runtime(engine: Engine) -> Runtime:
    """The engine of a name, which is imported now.

    Raises:
        NotConvertedError: it cannot be imported.
    """
    try:
        # Extras, and slow to import: not before they are to be used.
        if engine == "openvino":
            from tlray.models.encoder.engines.openvino.model import OpenVino

            return OpenVino()
        from tlray.models.encoder.engines.onnxruntime.runtime import OnnxRuntime

        return OnnxRuntime()
    except ImportError as error:
        raise NotConvertedError(f"it cannot be imported: {error}") from error
