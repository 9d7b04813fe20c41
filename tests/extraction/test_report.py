"""What bounded a run, from seconds that are known."""

import pytest

from tlray.extraction.report import Resources, report

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
    assert picture["bottleneck"] == "start"
    assert picture["stages"]["start"] == {"seconds": 20.0, "share": 0.8}


def test_without_work_there_are_no_shares() -> None:
    idle = report({"list": 0.1}, images=0, start_seconds=0, run_seconds=0, resources=Resources(cpus=2, gpus=0))
    assert idle["stages"] == {"list": {"seconds": 0.1}}


def test_shares_are_of_the_resource_that_a_stage_uses() -> None:
    picture = report(SECONDS, images=10_000, start_seconds=5.0, run_seconds=100.0, resources=Resources(8, 2))
    assert picture["stages"]["decode"]["share"] == 40 / 800
    assert picture["stages"]["encode"]["share"] == 150 / 200
    assert picture["stages"]["commit"]["share"] == 2 / 100


def test_nothing_done_is_no_division_by_zero() -> None:
    assert report({}, images=0, start_seconds=0.0, run_seconds=0.0, resources=Resources(1, 0))["stages"] == {}
