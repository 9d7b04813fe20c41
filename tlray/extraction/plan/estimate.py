"""How long a plan would take, from a few of its images that are really embedded."""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from time import perf_counter
from typing import Any

from tlray.extraction.plan.plan import Backlog, Plan
from tlray.lake.source.read_images import ReadSpec, decode_images, fetch_images
from tlray.models.backbones import Backbone
from tlray.models.encoder.encoder import Encoder
from tlray.progress import say

SAMPLE_IMAGES = 32
"""Images that a dry run really embeds, to estimate the time of the others."""


def estimate_seconds(backlogs: Iterator[Backlog], spec: ReadSpec, backbone: Backbone) -> dict[str, Any]:
    """Embed a few images, in this process, and scale up; shards are estimated by their bytes.

    Returns:
        units, todo_bytes, estimated_seconds.
    """
    units, todo_bytes, estimate, sample_seconds, seconds_each = 0, 0, 0.0, 0.0, 0.0
    for backlog in backlogs:
        plan = backlog.cut(unit_images=spec.batch_images, slots=os.cpu_count() or 1)
        if plan.units and not seconds_each:
            sample_seconds, fraction = time_sample(plan, spec, backbone, SAMPLE_IMAGES)
            seconds_each = sample_seconds / fraction / plan.todo
        units, todo_bytes = units + len(plan.units), todo_bytes + plan.todo_bytes
        estimate += plan.todo * seconds_each
    if units:
        say(f"estimated {estimate:.0f} s in one process on this machine, from a sample that took {sample_seconds:.1f} s")
    return {"units": units, "todo_bytes": todo_bytes, "estimated_seconds": round(estimate, 1)}


def time_sample(plan: Plan, spec: ReadSpec, backbone: Backbone, images: int) -> tuple[float, float]:
    """Fetch, decode and embed the first images of a plan, one stage after the other.

    Args:
        plan: with at least one unit.
        spec: how to fetch and decode.
        backbone: of the recipe.
        images: how many.

    Returns:
        The seconds it took, without what is done once only; and the fraction of the plan that this was: of its images, or
        of its bytes where shards hold an unknown number of images.
    """
    encoder = Encoder(backbone)
    items = plan.units[0].items.slice(0, images)
    warm_up = next(decode_images(islice(fetch_images(items, spec), images), spec))
    encoder.encode(warm_up.images_BHWC)  # the first pass allocates memory and chooses kernels
    began = perf_counter()
    fetched = list(islice(fetch_images(items, spec), images))
    for batch in decode_images(fetched, spec):
        encoder.encode(batch.images_BHWC)
    seconds = perf_counter() - began
    if spec.kind == "images":
        return seconds, len(fetched) / plan.todo
    return seconds, _size_bytes([image.data for image in fetched]) / max(1, plan.todo_bytes)


def _size_bytes(datas: Sequence[object]) -> int:
    return max(1, sum(len(data) for data in datas if isinstance(data, bytes)))
