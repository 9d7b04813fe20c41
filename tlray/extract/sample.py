"""How long a plan would take, from a few of its images that are really embedded."""

from collections.abc import Sequence
from itertools import islice
from time import perf_counter

from tlray.lake.fetch import FetchSpec, decode_members, fetch_members
from tlray.lake.plan import Plan
from tlray.models.backbones import Backbone
from tlray.models.encoder import Encoder


def time_sample(plan: Plan, spec: FetchSpec, backbone: Backbone, images: int) -> tuple[float, float]:
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
    warm_up = next(decode_members(islice(fetch_members(items, spec), images), 0, spec))
    encoder.encode(warm_up.images_BHWC)  # the first pass allocates memory and chooses kernels
    began = perf_counter()
    members = list(islice(fetch_members(items, spec), images))
    for piece in decode_members(members, 0, spec):
        encoder.encode(piece.images_BHWC)
    seconds = perf_counter() - began
    if spec.kind == "images":
        return seconds, len(members) / plan.todo
    return seconds, _size_bytes([member.data for member in members]) / max(1, plan.todo_bytes)


def _size_bytes(datas: Sequence[object]) -> int:
    return max(1, sum(len(data) for data in datas if isinstance(data, bytes)))
