"""Which engine is the fastest on this machine: a short trial of all that there are, and what is kept of it.

A trial on a machine that does other work at the moment can find the slower one the faster. So the engines take turns, the best
turn of each counts, for the processor's time that it took where it did not get all of its cores; and what such a trial found is
forgotten soon, so that a later run tries again.

Shape legend: B images, H height, W width, C channels.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np

from tlray.config.commands.extraction import Engine
from tlray.models.encoder.encoder import Encoder
from tlray.recipe import Compute

TURNS = 5
TURN_SECONDS = 0.3
"""How long each engine computes in a turn."""

LEADING_SHARE = 0.75
"""Of the fastest one's speed, what a way must have made to get another turn: turns differ by less on a calm machine."""

CALM_SHARE = 0.7
"""Of the cores' time that each engine's best turn must have got for a verdict to be kept. On a machine that does nothing else
it is 0.9 or more."""

BUSY_VERDICT_SECONDS = 600.0
"""How long what was found on a busy machine holds: for all workers of a run that begin about now."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pace:
    """How fast an encoder was in a turn.

    Attributes:
        rate: images a second.
        share: of the time of its cores that the process got.
    """

    rate: float
    share: float

    @property
    def full_rate(self) -> float:
        """Images a second had it had its cores for itself."""
        return self.rate / min(self.share, 1.0) if self.share > 0 else 0.0


@dataclass(frozen=True)
class Way:
    """A way to compute a network.

    Attributes:
        engine: that computes.
        batch_size: images in a pass.
        computes: the number format.
    """

    engine: Engine
    batch_size: int
    computes: Compute

    def __str__(self) -> str:
        return f"{self.engine} at {self.computes} by {self.batch_size}"


@dataclass(frozen=True)
class Verdict:
    """What a trial of the engines found.

    Attributes:
        way: the fastest.
        why: for people.
        usual_rate: images a second without a trial, by torch at the recipe's number format.
        until: seconds since 1970 from when on it counts no more; None for ever.
    """

    way: Way
    why: str
    usual_rate: float = 0.0
    until: float | None = None

    @classmethod
    def read(cls, path: Path) -> "Verdict | None":
        """What was kept, if it is one and still counts."""
        try:
            kept = json.loads(path.read_bytes())
            verdict = cls(Way(**kept.pop("way")), **kept)
            is_current = verdict.until is None or time.time() < verdict.until
        except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
            return None
        way = verdict.way
        is_known = way.engine in get_args(Engine) and way.computes in get_args(Compute)
        return verdict if is_known and is_current else None

    def for_a_while(self) -> "Verdict":
        """The same, as of a busy machine."""
        return replace(self, until=time.time() + BUSY_VERDICT_SECONDS)

    def keep(self, path: Path) -> "Verdict":
        """Write it for other processes; returns itself."""
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(asdict(self)))
        unfinished.replace(path)
        return self


def try_all(encoders: Mapping[Way, Encoder], images_BHWC: np.ndarray, cores: float) -> Verdict:
    """Let all ways embed in turns, those that are far behind in one alone.

    Args:
        encoders: one a way.
        images_BHWC: a batch for each lane.
        cores: that an encoder uses.
    """
    turns: dict[Way, list[Pace]] = {way: [] for way in encoders}
    for encoder in encoders.values():
        encoder.encode(images_BHWC)
    for _ in range(TURNS):
        leading = _leading(turns)
        if len(leading) == 1 < len(turns):
            break
        for way in leading:
            turns[way].append(pace_of(encoders[way], images_BHWC, cores))
    is_calm = all(max(turns[way], key=lambda pace: pace.rate).share >= CALM_SHARE for way in _leading(turns))
    rates = {way: max(pace.rate if is_calm else pace.full_rate for pace in paces) for way, paces in turns.items()}
    fastest = max(rates, key=rates.__getitem__)
    said = ", ".join(f"{way} {rate:.3g}" for way, rate in rates.items())
    if is_calm:
        return Verdict(fastest, f"images a second: {said}")
    busy = "images a second by the processor's time, as the machine was busy"
    return Verdict(fastest, f"{busy}: {said}; a later run tries again").for_a_while()


def _leading(turns: Mapping[Way, Sequence[Pace]]) -> list[Way]:
    """The ways that may be the fastest by their turns so far."""
    rates = {way: max((pace.full_rate for pace in paces), default=0.0) for way, paces in turns.items()}
    return [way for way, rate in rates.items() if rate >= LEADING_SHARE * max(rates.values())]


def pace_of(encoder: Encoder, images_BHWC: np.ndarray, cores: float) -> Pace:
    """Embed some images, by as many calls as it takes to tell."""
    began, processor_began, calls = time.perf_counter(), time.process_time(), 0
    while (elapsed := time.perf_counter() - began) < TURN_SECONDS or not calls:
        encoder.encode(images_BHWC)
        calls += 1
    share = (time.process_time() - processor_began) / (elapsed * cores)
    return Pace(calls * len(images_BHWC) / elapsed, share)
