"""What bounded a run, from seconds that are known."""

import pytest

from tlray.extraction.run.report import Resources, report
from tlray.extraction.run.totals import Totals
from tlray.extraction.worker.pieces import Piece, WrittenParts
from tlray.lake.table.parts import Part

SECONDS = {"list": 1.0, "fetch": 5.0, "decode": 40.0, "encode": 150.0, "write": 4.0, "upload": 1.0, "commit": 2.0}


def bound(resources: Resources, **changes: float) -> tuple[str, str]:
    picture = report(SECONDS | changes, images=10_000, start_seconds=5.0, run_seconds=105.0, resources=resources)
    return picture["bottleneck"], picture["advice"]


@pytest.mark.parametrize(
    ("resources", "changes", "expected", "words"),
    [
        (Resources(2, 0), {}, "encode", "97 % of the cores' time was used, 77 % of that for encode"),
        (Resources(2, 0), {"decode": 160.0, "encode": 30.0}, "decode", "more cores make it faster"),
        (Resources(2, 0), {"fetch": 500.0, "decode": 10.0, "encode": 20.0}, "fetch", "nearer"),
        (Resources(2, 0), {"commit": 80.0}, "commit", "driver spent 80.0 s"),
        (Resources(2, 0), {"list": 70.0}, "list", "no worker"),
        (Resources(16, 1), {"encode": 96.0}, "encode", "GPUs were busy 96 % of the time"),
        # Cores are busy all the time and the GPU a quarter of it: it could take four times as much, so 3 x 4 more cores.
        (Resources(4, 1), {"decode": 390.0, "encode": 25.0}, "decode", "12 more CPUs would use the GPUs fully"),
        (Resources(16, 1), {"encode": 30.0, "transfer": 400.0}, "transfer", "had time left"),
    ],
)
def test_what_bounds_a_run(resources: Resources, changes: dict[str, float], expected: str, words: str) -> None:
    bottleneck, advice = bound(resources, **changes)
    assert bottleneck == expected
    assert words in advice


def test_a_short_run_is_bound_by_its_start() -> None:
    picture = report(SECONDS, images=100, start_seconds=20.0, run_seconds=25.0, resources=Resources(2, 0))
    assert picture["bottleneck"] == "start" and "loading" in picture["advice"]
    assert picture["stages"]["start"] == {"seconds": 20.0, "share": 0.8}


def test_without_work_there_are_no_shares() -> None:
    idle = report({"list": 0.1}, images=0, start_seconds=0, run_seconds=0, resources=Resources(cpus=2, gpus=0))
    assert idle["stages"] == {"list": {"seconds": 0.1}}


def test_shares_are_of_the_resource_that_a_stage_uses() -> None:
    picture = report(SECONDS, images=10_000, start_seconds=5.0, run_seconds=100.0, resources=Resources(8, 2))
    assert picture["stages"]["decode"]["share"] == 40 / 800
    assert picture["stages"]["encode"]["share"] == 150 / 200
    assert picture["stages"]["commit"]["share"] == 2 / 100


def test_a_run_with_nothing_to_do_was_all_start_or_all_listing() -> None:
    def bottleneck(start: float, listing: float) -> str:
        seconds = {"list": listing, "commit": 0.0}
        run = {"images": 0, "start_seconds": start, "run_seconds": start + listing, "resources": Resources(2, 0)}
        return report(seconds, **run)["bottleneck"]

    assert bottleneck(3.0, 0.1) == "start"
    assert bottleneck(3.0, 60.0) == "list"


def test_nothing_done_is_no_division_by_zero() -> None:
    assert report({}, images=0, start_seconds=0.0, run_seconds=0.0, resources=Resources(1, 0))["stages"] == {}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def written(images: int, **seconds: float) -> Piece[WrittenParts]:
    return Piece(0, 0, True, WrittenParts((Part(path="x", status="ok", rows=images, size_bytes=1),), {}), seconds)


def test_start_is_what_came_before_the_first_images_but_for_listing() -> None:
    clock = Clock()
    totals = Totals(clock=clock)
    clock.now += 4  # imports
    with totals.timed("list"):
        clock.now += 10
    clock.now += 3  # weights
    assert totals.start_seconds == 7
    clock.now += 5
    totals.add(written(64, fetch=1.0, decode=1.0, encode=2.5, write=0.5))  # on a worker elsewhere, of which nobody heard before
    clock.now += 100
    totals.add(written(64, encode=50.0))
    assert (totals.start_seconds, totals.run_seconds) == (7, 122)
    assert totals.result()["images_per_second"] == round(128 / 122, 3)


def test_workers_of_this_process_say_when_they_begin() -> None:
    clock = Clock()
    totals = Totals(clock=clock)
    clock.now += 6
    totals.has_started()
    clock.now += 30
    totals.add(written(512, encode=20.0))  # waited for its turns on the cores meanwhile
    assert totals.start_seconds == 6
    assert totals.report()["bottleneck"] == "encode"
