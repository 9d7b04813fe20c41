"""The race of candidates: all are tried on a few images, and those that cannot win any more are spared the rest.

The rule: after each rung (a quarter, a half, all of the sample) a candidate is dropped if it is behind the one of the best
linear probe by more than chance explains: by the paired difference, image by image, at a one-sided level of 1 % divided by the
number of candidates that are compared with the best (Bonferroni). Races of models by confidence bounds on their differences are
of Maron and Moore 1994 (Hoeffding Races, NIPS 6); rungs that double the data are those of successive halving (Jamieson and
Talwalkar 2016, arXiv 1502.07943), which drops half of the candidates whatever their distance.

Then a play-off: probes that are within the error of the best are judged by further cross-validations, each with folds of its
own, as one alone depends on how the folds fall (Kohavi 1995, IJCAI; Kim 2009, Computational Statistics & Data Analysis 53).

Shape legend: N images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tlray.advice.inputs.candidates import Candidate, Embedder
from tlray.advice.inputs.sample import LEAST_ROWS, Sample
from tlray.advice.measuring.difference import Difference
from tlray.advice.measuring.probes import Probe, linear_probe
from tlray.progress import say

RUNGS = (0.25, 0.5, 1.0)
"""The shares of the sample that the candidates are compared on, one after the other."""

GROWTH = 1.5
"""Least factor from one rung to the next: of a small sample, whose first rungs have the least number of images of each class,
those that would hardly differ from the one after them are left out."""

LEVEL = 0.01
"""Chance that a rung drops the candidate which would have won."""

NEAR_LEVEL = 0.025
"""One-sided, at which a probe is behind the best and no longer near it."""

PLAY_OFF = 5
"""Cross-validations of each probe that is near the best."""


@dataclass(frozen=True)
class Racer:
    """A candidate that is still in the race, and how its layers do.

    Attributes:
        embedder: of it.
        probes: of its layers on the images of the last rung that it was in; by tap.
        sample: these images.
    """

    embedder: Embedder
    probes: Mapping[str, Probe]
    sample: Sample

    @property
    def candidate(self) -> Candidate:
        """The candidate that is racing."""
        return self.embedder.candidate

    @property
    def best_tap(self) -> str:
        """The layer whose features tell the classes best: by its loss, of equals the penultimate."""
        return min(list(self.probes)[::-1], key=lambda tap: self.probes[tap].loss)

    @property
    def right(self) -> np.ndarray:
        """Which images the best layer's features tell right."""
        return self.probes[self.best_tap].right_N


@dataclass(frozen=True)
class Finish:
    """How a race ended: who is left, and who was dropped.

    Attributes:
        racers: those that are left, the best first.
        out: those that were dropped, the last ones first.
        sample: the images of its last rung, by which the racers were judged.
    """

    racers: tuple[Racer, ...]
    out: tuple[Racer, ...]
    sample: Sample


def run_race(sample: Sample, embedders: Sequence[Embedder], seed: int, has_time: Callable[[float], bool]) -> "Finish":
    """Try candidates on more and more of the sample.

    Args:
        sample: of labelled images.
        embedders: one for each candidate, at least one.
        seed: of the probes.
        has_time: whether so many more seconds are left.

    Returns:
        How it ended.
    """
    rungs = rungs_of(sample)
    racing, out = [Racer(one, {}, sample) for one in embedders], list[Racer]()
    for number, rows in enumerate(rungs):
        some, count = sample.take(rows), len(rows)
        racing = _in_order([Racer(one.embedder, _probes(one.embedder, some, rows, seed), some) for one in racing])
        best = racing[0]
        is_last = number == len(rungs) - 1
        say(
            f"{count} images: {len(racing)} candidates, best so far {best.candidate.name} at {best.best_tap}, "
            f"{best.right.mean():.3f} right"
        )
        if is_last:
            break
        behind = [one for one in racing[1:] if _is_behind(one, best, len(racing) - 1)]
        for one in behind:
            one.candidate.dropped_after = count
        if behind:
            say(f"out of the race after {count} images: {', '.join(one.candidate.name for one in behind)}")
        out, racing = behind + out, [one for one in racing if one not in behind]
        if not has_time(_seconds_of(racing, len(rungs[number + 1]) - count)):
            say("the minutes are short: the race ends here")
            break
    return Finish(tuple(racing), tuple(out), some)


def play_off(finish: Finish, seed: int, probe_seconds: float, has_time: Callable[[float], bool]) -> Finish:
    """Judge probes that are within the error of the best by more cross-validations.

    Args:
        finish: of the race.
        seed: of the probes.
        probe_seconds: that one of them takes.
        has_time: whether so many more seconds are left; without them all stays as it is.
    """
    best, sample = finish.racers[0].right, finish.sample
    near = {
        (one.candidate.name, tap)
        for one in finish.racers
        for tap, probe in one.probes.items()
        if not Difference.of(best, probe.right_N).exceeds(NEAR_LEVEL)
    }
    if len(near) < 2:
        return finish
    if not has_time(len(near) * (PLAY_OFF - 1) * probe_seconds):
        say(f"the minutes are short: {len(near)} probes within the error of the best are not judged again")
        return finish
    others = [(number, sample.other_folds(number)) for number in range(seed + 1, seed + PLAY_OFF)]

    def judged(one: Racer) -> Racer:
        probes = dict(one.probes)
        for tap, features_ND in one.candidate.features.items():
            if (one.candidate.name, tap) in near:
                again = [linear_probe(features_ND, sample.examples, folds_N, seed=number) for number, folds_N in others]
                probes[tap] = Probe.mean([probes[tap], *again])
        return replace(one, probes=probes)

    racers = _in_order([judged(one) for one in finish.racers])
    best_one = racers[0]
    say(
        f"{len(near)} probes within the error of the best were judged by {PLAY_OFF} cross-validations: the best is now "
        f"{best_one.candidate.name} at {best_one.best_tap}, {best_one.right.mean():.3f} right"
    )
    return replace(finish, racers=tuple(racers))


def rungs_of(sample: Sample) -> list[np.ndarray]:
    """Positions of the images of each rung; a small sample has fewer rungs."""
    least = 2 * LEAST_ROWS * len(sample.examples.classes)
    rungs = [np.arange(len(sample))]
    for share in reversed(RUNGS[:-1]):
        rows = sample.first(max(round(len(sample) * share), least))
        if len(rows) * GROWTH <= len(rungs[0]):
            rungs.insert(0, rows)
    return rungs


def _seconds_of(racing: Sequence[Racer], images: int) -> float:
    return sum(one.candidate.seconds_per_image for one in racing) * images


def _probes(embedder: Embedder, some: Sample, rows: np.ndarray, seed: int) -> dict[str, Probe]:
    embedder.embed(rows)
    features = embedder.candidate.features
    return {tap: linear_probe(features_ND, some.examples, some.folds_N, seed=seed) for tap, features_ND in features.items()}


def _in_order(racers: Sequence[Racer]) -> list[Racer]:
    """The best first; of equals the one that is quicker."""
    return sorted(racers, key=lambda one: (one.probes[one.best_tap].loss, one.candidate.seconds_per_image))


def _is_behind(one: Racer, best: Racer, others: int) -> bool:
    return Difference.of(best.right, one.right).exceeds(LEVEL / others)
