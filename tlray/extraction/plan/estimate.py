"""How long a plan would take, from a few of its images that are really embedded."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from time import perf_counter
from typing import Any

import pyarrow as pa

from tlray.extraction.plan.backlog import Backlog
from tlray.extraction.plan.plan import Plan
from tlray.lake.source.fetch import fetch_images
from tlray.lake.source.read_images import decode_images
from tlray.lake.source.read_spec import ReadSpec
from tlray.machine.capacity import usable_cores
from tlray.models.backbones.any_backbone import AnyBackbone
from tlray.models.encoder.golden import open_encoder
from tlray.progress import readable_seconds, say

SAMPLE_IMAGES = 32
"""Images that a dry run really embeds, to estimate the time of the others."""


@dataclass
class Sample:
    """What became of a plan's first images.

    Attributes:
        images: how many were tried.
        seconds: that they took, without what is done once only.
        fraction: of the plan that they are: of its images, or of its bytes where shards hold an unknown number of images.
        failures: those that could not be read, by error code.
        notes: why, of a few.
    """

    images: int = 0
    seconds: float = 0.0
    fraction: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    @property
    def says_how_long(self) -> bool:
        """Whether any image of the sample could be embedded, so that its time is known."""
        return self.images > self.failures.total() and self.fraction > 0


def estimate_seconds(
    backlogs: Iterator[Backlog], spec: ReadSpec, backbone: AnyBackbone, start_seconds: Callable[[], float]
) -> dict[str, Any]:
    """Embed a few images, in this process, and scale up; shards are estimated by their bytes.

    Args:
        backlogs: all there is to do.
        spec: how to fetch and decode.
        backbone: of the recipe.
        start_seconds: since the command began, listing apart; what has to be loaded is loaded for the sample, too.

    Returns:
        `units`; `todo_bytes`, None where the listing has no sizes; `estimated_seconds` of the whole run in this process, None
        where no image of the sample could be read; `start_seconds` of them; and the `sample`: images, failed, failures.
    """
    units, todo, todo_bytes, unsized = 0, 0, 0, 0
    sample, started = Sample(), 0.0
    for backlog in backlogs:
        plan = backlog.cut(unit_images=spec.batch_images, slots=usable_cores())
        if plan.units and not sample.images:
            sample = take_sample(plan, spec, backbone, SAMPLE_IMAGES)
            started = start_seconds() - sample.seconds
            seconds_each = sample.seconds / sample.fraction / plan.todo if sample.says_how_long else None
        units, todo = units + len(plan.units), todo + plan.todo
        todo_bytes, unsized = todo_bytes + plan.todo_bytes, unsized + plan.unsized
    started = started or start_seconds()
    seconds = started if not todo else None if seconds_each is None else started + todo * seconds_each
    _say_estimate(todo, seconds, started, sample, spec.source.things)
    return {
        "units": units,
        "todo_bytes": None if unsized and not todo_bytes else todo_bytes,
        "estimated_seconds": None if seconds is None else round(seconds, 3),
        "start_seconds": round(started, 3),
        "sample": {"images": sample.images, "failed": sample.failures.total(), "failures": dict(sample.failures)},
    }


def _say_estimate(todo: int, seconds: float | None, started: float, sample: Sample, things: str) -> None:
    for note in sample.notes:
        say(f"failed: {note}")
    if sample.failures:
        codes = ", ".join(f"{count} {code}" for code, count in sample.failures.most_common())
        say(f"of {sample.images} {things} that were tried {sample.failures.total()} failed ({codes}), and would in a run")
    if not todo:
        say("nothing to embed")
    elif seconds is None:
        say(f"no estimate of the time, as none of the {things} of the sample could be read")
    else:
        say(
            f"estimated {readable_seconds(seconds)} in one process on this machine: {readable_seconds(started)} to start, and "
            f"{readable_seconds(seconds - started)} for the {things}, of which {sample.images} took "
            f"{readable_seconds(sample.seconds)}"
        )


def take_sample(plan: Plan, spec: ReadSpec, backbone: AnyBackbone, images: int) -> Sample:
    """Fetch, decode and embed the first images of a plan, one stage after the other.

    Args:
        plan: with at least one unit.
        spec: how to fetch and decode.
        backbone: of the recipe.
        images: how many at most.
    """
    encoder = open_encoder(backbone)
    items = plan.units[0].items.slice(0, images)
    warm_up = next(decode_images(islice(fetch_images(items, spec), images), spec))
    encoder.encode(warm_up.inputs)  # the first pass allocates memory and chooses kernels
    sample = Sample()
    began = perf_counter()
    fetched = list(islice(fetch_images(items, spec), images))
    batches = []
    for batch in decode_images(fetched, spec):
        encoder.encode(batch.inputs)
        batches.append(batch)
    sample.seconds = perf_counter() - began
    sample.images = len(fetched)
    for batch in batches:
        sample.failures.update(batch.rows["error"].drop_null().to_pylist())
        sample.notes += batch.notes
    sizes = pa.array([len(image.data) if isinstance(image.data, bytes) else 0 for image in fetched], pa.int64())
    if spec.kind == "images":
        sample.fraction = len(fetched) / plan.todo
    else:
        sample.fraction = (sizes.sum().as_py() or 0) / max(1, plan.todo_bytes)
    return sample
