"""Which engine computes a network on a CPU: torch as this package runs it, or another one that is installed and faster here.

Recipes of 16 bits are computed at fp32 where that is faster, as processors differ: some have instructions for 16 bits that do
half as many multiplications a cycle, and libraries lack kernels of 16 bits for some layers (docs/benchmarks.md has figures).
The numbers of fp32 are closer to what the recipe stands for than any rounding of theirs.
"""

import hashlib
import json
import logging
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from tlray.config.commands.extraction import Engine
from tlray.extras import require
from tlray.machine.capacity import usable_core_time
from tlray.models.backbones.images import Backbone
from tlray.models.encoder.encoder import Encoder, default_batch_size
from tlray.models.encoder.engines.converted import ConvertedCache, NotConvertedError
from tlray.models.encoder.engines.node_files import cache_folder, cpu_flags, only_one
from tlray.models.encoder.engines.others import OTHERS, identity_of, runtime_of
from tlray.models.encoder.engines.trial import CALM_SHARE, TURNS, Pace, Verdict, Way, pace_of, try_all
from tlray.models.encoder.network.exactness import choose_exact_below
from tlray.models.layers.taps import Tappable
from tlray.models.process.device import check_batch_size, choose_device, computes_as
from tlray.recipe import Compute, golden_images

FORMAT = 5
"""Of the files that are kept; another one where graphs are made in another way."""

TRIAL_SECONDS = 15.0
"""What conversions are taken to cost, for each engine beside torch; a generous assumption (docs/benchmarks.md has what was
seen)."""

FORMAT_SECONDS = 3.0
"""What it is taken to cost to make torch's network again, at fp32, for a recipe of 16 bits."""

TRIAL_GAIN = 0.15
"""The part of the encoding time that the fastest way is taken to save: less than was seen of most networks."""

WORTH_SHARE = 0.75
"""Of torch's speed at its faster number format, what it must make at another one for other engines to be tried at that too.
Conversions at 16 bits take the longest, as layers are chosen for them."""

LEAST_IMAGES = 1000
"""Fewer are not even timed, so that short runs start as soon as they would without a choice."""


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
    if wanted.engine != "auto" and (other := OTHERS[wanted.engine]).versions is None:
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
        self._others = [name for name, other in OTHERS.items() if other.versions is not None]
        self._folder = wanted.folder or cache_folder("engines")

    def open(self) -> Encoder:
        """Open the encoder that is wanted; see `open_image_encoder`."""
        if self._wanted.engine != "auto":
            return self._by_name(self._wanted.engine)
        if isinstance(self._backbone.module, Tappable) or not self._trials:
            return self._torchs()
        verdict, ours = self._verdict()
        if verdict is None:
            return ours or self._torchs()
        encoder = (ours if verdict.way == self._usual else None) or self._by(verdict.way)
        _log.info("%s computes %s on this machine; %s", encoder.computed_by, self._backbone.recipe.backbone, verdict.why)
        encoder.trial = verdict.why
        return encoder

    def _by_name(self, engine: Engine) -> Encoder:
        """The encoder of an engine that is asked for, at the recipe's number format or else at fp32; else torch's."""
        name, other = self._backbone.recipe.backbone, OTHERS[engine]
        why = f"it does not compute {self._formats[0]}"
        for computes in self._formats:
            if computes not in other.computes:
                continue
            try:
                encoder = self._converted(Way(engine, self._batch_size, computes))
            except NotConvertedError as error:
                if isinstance(error.__cause__, ImportError):
                    require(other.extra, *other.packages, what=f"engine {engine}")
                why = str(error)
            else:
                if computes != self._formats[0]:
                    _log.info("%s computes %s at %s: %s", engine, name, computes, why)
                return encoder
        _log.warning("torch computes %s, as %s does not: %s", name, engine, why)
        return self._torchs()

    @property
    def _usual(self) -> Way:
        """What computes without a trial."""
        return Way("torch", self._batch_size, self._formats[0])

    def _by(self, way: Way) -> Encoder:
        """The encoder of a way; torch's usual one where its engine cannot any more, which is said."""
        if way.engine == "torch":
            return self._torchs(way.computes)
        try:
            return self._converted(way)
        except NotConvertedError as error:
            _log.warning("torch computes %s, as %s does not: %s", self._backbone.recipe.backbone, way.engine, error)
            return self._torchs()

    def _torchs(self, computes: Compute | None = None) -> Encoder:
        return _torchs(self._backbone, self._wanted, computes)

    @property
    def _trials(self) -> list[tuple[Engine, ...]]:
        """The engines beside torch of each possible trial, the widest first; one of none tries number formats alone."""
        trials = dict.fromkeys((tuple(self._others), ()))
        return [others for others in trials if others or len(self._formats) > 1]

    def _verdict(self) -> tuple[Verdict | None, Encoder | None]:
        """What this machine found, or finds now where that pays; with torch's encoder where it was made for that.

        One process of a machine tries, while the others wait and leave the cores alone.
        """
        kept = self._kept()
        if kept is not None or self._wanted.images < LEAST_IMAGES:
            return kept, None
        with only_one(self._file(self._trials[0]).with_suffix(".lock"), wait=True):
            if (kept := self._kept()) is not None:
                return kept, None
            ours = self._torchs()
            rate = self._pace(ours).full_rate
            others = next((others for others in self._trials if self._pays(rate, others)), None)
            return (None if others is None else self._try(ours, others).keep(self._file(others))), ours

    def _kept(self) -> Verdict | None:
        """What the widest trial found that was made; none where a wider one pays now."""
        for others in self._trials:
            if (verdict := Verdict.read(self._file(others))) is not None:
                is_widest = others == self._trials[0]
                return verdict if is_widest or not self._pays(verdict.usual_rate, self._trials[0]) else None
        return None

    def _file(self, others: Sequence[Engine]) -> Path:
        """Where what a trial finds is kept."""
        wanted = self._wanted
        return self._path(wanted.batch_size, wanted.lanes or 0, *map(identity_of, others)).with_suffix(".json")

    def _pays(self, rate: float, others: Sequence[Engine]) -> bool:
        """Whether a trial saves more time than it costs, by torch's own speed in images a second."""
        if self._wanted.images < LEAST_IMAGES:
            return False
        ways = len(self._formats) - 1 + sum(len(self._batch_sizes(engine)) for engine in others)
        computing_seconds = ways * (TURNS + 2) * len(self._trial_images()) / rate
        cost_seconds = TRIAL_SECONDS * len(others) + FORMAT_SECONDS * (len(self._formats) - 1) + computing_seconds
        return self._wanted.images / rate * TRIAL_GAIN > cost_seconds

    def _try(self, ours: Encoder, others: Sequence[Engine]) -> Verdict:
        """Have all ways embed that are worth a try, and find the fastest."""
        encoders = {replace(self._usual, computes=computes): self._torchs(computes) for computes in self._formats[1:]}
        encoders[self._usual] = ours
        paces = {way.computes: self._pace(encoder) for way, encoder in encoders.items()}
        best = max(pace.full_rate for pace in paces.values())
        notes = []
        for computes in self._formats:
            able = [engine for engine in others if computes in OTHERS[engine].computes]
            if able and paces[computes].full_rate < WORTH_SHARE * best:
                notes.append(f"{computes} by {' and '.join(able)} was not tried, as torch shows it slow here")
                continue
            for engine in able:
                try:
                    for batch_size in self._batch_sizes(engine):
                        way = Way(engine, batch_size, computes)
                        encoders[way] = self._converted(way)
                except NotConvertedError as error:
                    notes.append(f"{engine} cannot at {computes}: {error}")
        verdict = try_all(encoders, self._trial_images(), self._cores)
        if any(pace.share < CALM_SHARE for pace in paces.values()):  # what was left out was judged by these
            verdict = verdict.for_a_while()
        usual_rate = paces[self._formats[0]].full_rate
        return replace(verdict, why="; ".join([verdict.why, *notes]), usual_rate=usual_rate)

    def _batch_sizes(self, engine: Engine) -> list[int]:
        """Images in a pass that an engine is tried with: the usual number, and smaller ones."""
        more = OTHERS[engine].batch_sizes if self._wanted.batch_size is None else ()
        return sorted({self._batch_size, *(size for size in more if size < self._batch_size)})

    def _pace(self, encoder: Encoder) -> Pace:
        """Of a first short turn."""
        images_BHWC = self._trial_images()
        encoder.encode(images_BHWC)
        return pace_of(encoder, images_BHWC, self._cores)

    def _converted(self, way: Way) -> Encoder:
        backbone, lanes = self._backbone, self._wanted.lanes or 0
        exact_below = 0 if way.computes == "fp32" else self._wanted.exact_below or 0
        path = self._path(way.batch_size, way.computes, *identity_of(way.engine)).with_suffix(".blob")
        runtime = runtime_of(way.engine)
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
    def _cores(self) -> float:
        return min(self._wanted.lanes or torch.get_num_threads(), usable_core_time())

    def _trial_images(self) -> np.ndarray:
        """Images that the engines are tried on: whole batches of every size that is tried, as many for each lane."""
        golden_BHWC = golden_images(*self._backbone.recipe.preprocessing.crop)
        sizes = {size for engine in self._others for size in self._batch_sizes(engine)}
        count = math.lcm(self._batch_size, *sizes) * (self._wanted.lanes or 1)
        return np.resize(golden_BHWC, (count, *golden_BHWC.shape[1:]))

    def _path(self, *rest: object) -> Path:
        """Of a file whose name says all that it depends on."""
        machine = [torch.__version__, platform.machine(), cpu_flags()]
        key = [FORMAT, self._backbone.recipe.recipe_id, self._wanted.exact_below, *machine, *rest]
        return self._folder / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
