"""What advice may cost: the time that is left, an estimate before any work, and what is done where it is too much."""

import time
from collections.abc import Sequence
from typing import Any

from tlray.advice.inputs.candidates import Embedder
from tlray.advice.inputs.sample import LEAST_ROWS, Sample
from tlray.advice.measuring.race import RUNGS
from tlray.errors import ConfigError
from tlray.progress import readable_seconds, say

RACE_PASSES = sum(RUNGS)
"""Times that probes go over the sample in a race that drops nobody."""


class Clock:
    """The time that a command may take, from now on.

    Args:
        minutes: that it may take.
    """

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds that have passed since the budget began."""
        return round(time.monotonic() - self._began, 3)

    @property
    def left(self) -> float:
        """Seconds that are left; negative when it is over."""
        return self.minutes * 60 - self.seconds

    def has(self, seconds: float) -> bool:
        """Whether so many seconds are left."""
        return seconds <= self.left


def estimate_of(embedders: Sequence[Embedder], sample: Sample, probe_seconds: float) -> dict[str, Any]:
    """Measure what an image takes in each network, and add up.

    Args:
        embedders: of the candidates.
        sample: of labelled images.
        probe_seconds: that one probe of the sample takes.

    Returns:
        `seconds` in all, `embedding` and `probing` of them, and `per_image` by candidate.
    """
    per_image = {one.candidate.name: one.time(sample.first(one.timed_images)) for one in embedders}
    layers = sum(len(one.candidate.taps) for one in embedders)
    embedding, probing = sum(per_image.values()) * len(sample), layers * probe_seconds * RACE_PASSES
    return {
        "seconds": round(embedding + probing, 3),
        "embedding": round(embedding, 3),
        "probing": round(probing, 3),
        "per_image": {name: round(seconds, 6) for name, seconds in per_image.items()},
    }


def fit_to_budget(
    sample: Sample, embedders: Sequence[Embedder], clock: Clock, probe_seconds: float
) -> tuple[Sample, list[Embedder], dict[str, str]]:
    """Take fewer images, and then fewer candidates, where the minutes are too few for all; both are said.

    Returns:
        The sample, the embedders, and why candidates are left out, by name.

    Raises:
        ConfigError: the quickest candidate on the smallest sample takes longer.
    """

    def seconds_of(some: Sequence[Embedder], images: int) -> float:
        """Seconds that the last rung takes; those before it are a part of it, but for their probes."""
        share = images / len(sample)
        probing = sum(len(one.candidate.taps) for one in some) * probe_seconds * RACE_PASSES * share
        return sum(one.candidate.seconds_per_image for one in some) * images + probing

    left = max(clock.left, 0.0)
    least = min(len(sample), 2 * LEAST_ROWS * len(sample.examples.classes))
    order = sorted(embedders, key=lambda one: one.candidate.seconds_per_image)
    if seconds_of(order[:1], least) > left:
        enough = (seconds_of(order[:1], least) + clock.seconds) / 60 * 1.2
        raise ConfigError(
            f"minutes is {clock.minutes:g}, too little for one candidate: {order[0].candidate.name} on {least} images takes "
            f"{readable_seconds(seconds_of(order[:1], least))} here, and {readable_seconds(clock.seconds)} have passed; give "
            f"--minutes {max(enough, 0.1):.1f} or more"
        )
    kept = list(order)
    while seconds_of(kept, least) > left:
        kept.pop()
    dropped = {one.candidate.name: f"the minutes ({clock.minutes:g}) do not reach for it" for one in order if one not in kept}
    for name, reason in dropped.items():
        say(f"left out: {name}: {reason}")
    images = len(sample)
    if seconds_of(kept, images) > left:
        per_image = seconds_of(kept, images) / images
        images = max(least, int(left / per_image))
        say(f"the minutes are short: {images} of {len(sample)} images are taken")
        rows = sample.first(images)
        sample = sample.take(rows)
        for one in kept:
            one.restrict(rows)
    return sample, [one for one in embedders if one in kept], dropped
