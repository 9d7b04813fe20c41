"""A time by which a run is to be done: what it is, what is said on the way, and how a run ends that it overtakes."""

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from tests.extraction.test_in_process import assert_same
from tests.photos import RECIPE, error_of, frame_of, result_of, tlray, write_photos
from tests.ray_cluster import RayCluster
from tlray.config import ExtractConfig, RecipeConfig, SourceConfig
from tlray.config_reader import read_config
from tlray.errors import ConfigError, StoppedError, StorageError
from tlray.extraction.run import deadline as module
from tlray.extraction.run.deadline import Deadline, closes_at, kept
from tlray.extraction.run.stop import Stop

NOW = datetime(2026, 11, 30, 22, 30, tzinfo=timezone(timedelta(hours=1))).timestamp()


@pytest.fixture(autouse=True)
def _in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


def config_of(**keys: object) -> ExtractConfig:
    recipe = RecipeConfig(backbone="torchvision:resnet50")
    return read_config(ExtractConfig, {"source": SourceConfig(uri="s3://b/"), "table": "s3://b/t", "recipe": recipe, **keys})


def closing(*, now: float = NOW, **keys: object) -> float | None:
    config = config_of(**keys)
    return closes_at(config.by, config.budget_hours, now)


@pytest.mark.parametrize(
    ("by", "hours"),
    [
        ("06:00", 7.5),
        ("22:29", 24 - 1 / 60),
        ("23:00", 0.5),
        ("06:00Z", 8.5),
        ("06:00+05:00", 3.5),
        ("2026-12-01T06:00", 7.5),
        ("2026-12-01T06:00+02:00", 6.5),
        ("2026-12-02", 25.5),
    ],
)
def test_the_next_time_of_that_name(by: str, hours: float) -> None:
    closes = closing(by=by)
    assert closes == pytest.approx(NOW + 3600 * hours)


@pytest.mark.parametrize(
    ("now", "by", "expected"),
    [
        ("2026-10-24T22:00", "06:00", "2026-10-25T06:00"),  # clocks go back at 03:00
        ("2026-10-24T22:00", "02:15", "2026-10-25T02:15"),
        ("2026-10-24T22:00", "2026-10-26T06:00", "2026-10-26T06:00"),
        ("2027-03-27T22:00", "06:00", "2027-03-28T06:00"),  # clocks go forward at 02:00
        ("2027-03-27T22:00", "2027-03-29T06:00", "2027-03-29T06:00"),
        ("2027-03-27T06:00", "06:00", "2027-03-28T06:00"),
    ],
)
def test_a_clock_that_is_put_forward_or_back_until_then(now: str, by: str, expected: str) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    began, ends = (datetime.fromisoformat(text).replace(tzinfo=berlin).timestamp() for text in (now, expected))
    assert closing(by=by, now=began) == ends


def test_the_earlier_of_both_counts_and_none_is_none() -> None:
    assert closing() is None
    assert closing(budget_hours=2) == NOW + 7200
    assert closing(by="23:00", budget_hours=2) == NOW + 1800
    assert closing(by="23:00", budget_hours=0.25) == NOW + 900


def test_what_is_no_time_or_over_is_refused() -> None:
    for by in ("soon", "6:00", "25:00", "2026-13-01"):
        with pytest.raises(ConfigError, match=r"by.*expected a time of the day such as 06:00"):
            config_of(by=by)
    for hours in (0, -1, 1e9, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="budget_hours"):
            config_of(budget_hours=hours)
    with pytest.raises(ConfigError, match="by is 2026-11-30T22:29, which is over"):
        closing(by="2026-11-30T22:29")


FILE = "by: {}\nsource: {{uri: s3://b/}}\ntable: s3://b/t\nrecipe: {{backbone: torchvision:resnet50}}\n"


def test_a_file_gives_it_as_yaml_has_it(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    for given, by in (
        ("06:00", "06:00"),
        ("18:30", "18:30"),
        ("2026-12-01T06:00:00", "2026-12-01T06:00:00"),
        ("2026-12-01 06:00:00+01:00", "2026-12-01T06:00:00+01:00"),
        ("18:30:15", "18:30:15"),
        ("'06:00'", "06:00"),
    ):
        file.write_text(FILE.format(given))
        assert read_config(ExtractConfig, {}, file=file).by == by
    for odd in ("0600", "730", "6:00", "6", "true"):  # to YAML 1.1 the first is 384 and the third 360
        file.write_text(FILE.format(odd))
        with pytest.raises(ConfigError, match=r"^by: "):
            read_config(ExtractConfig, {}, file=file)


@pytest.fixture
def now() -> list[float]:
    return [1_000_000.0]


def test_it_says_whether_it_will_be_done_and_only_when_that_changes(now: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tlray")

    def work(seconds: float, rate: float) -> list[str]:
        caplog.clear()
        for _ in range(int(seconds / 10)):
            now[0] += 10
            deadline.has_done(int(10 * rate))
        return caplog.messages

    deadline = Deadline(now[0] + 10_000, clock=lambda: now[0])
    assert caplog.messages == ["to be done by 1970-01-12T16:33:20Z, in 2 h 47 min"]
    deadline.expect(1_000_000)
    assert work(10, 1e5 / 10) == []  # of what was done before it is not known how long it took
    (late,) = work(60, 50)
    assert "will NOT be done by 1970-01-12T16:33:20Z: about 4" in late and "of the 899000 that are left" in late
    assert work(600, 50) == []
    (early,) = work(600, 150)  # workers have joined
    assert "this will be done at 1970-01-12T" in early and "before its time" in early
    assert work(300, 120) == []
    (late,) = work(600, 40)  # and left
    assert "NOT" in late
    work(7000, 200)
    assert deadline.result() == {"by": "1970-01-12T16:33:20Z", "spare_seconds": pytest.approx(830)}


def test_a_pace_that_hardly_suffices_is_not_said_again_and_again(now: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tlray")
    deadline = Deadline(now[0] + 10_000, clock=lambda: now[0])
    deadline.expect(1_000_000)
    for number in range(500):
        now[0] += 10
        deadline.has_done(1020 if number % 2 else 980)
    assert len(caplog.messages) == 2


def test_what_waits_is_interrupted_when_units_under_way_have_had_their_time(
    monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.01)
    deadline = Deadline(now[0] + 10, clock=lambda: now[0])
    deadline.expect(7)
    over = r"its time is over \(1970-01-12T13:46:50Z\), and 7 are left to do"
    with pytest.raises(StoppedError, match=over), Stop() as stop, kept(deadline, stop):
        now[0] += 10 + module.GRACE_SECONDS - 1
        time.sleep(0.1)
        assert deadline.is_over
        now[0] += 1
        time.sleep(10)
    with pytest.raises(StoppedError, match="7 are left"):
        deadline.expect(7)


def test_what_is_left_is_not_told_before_it_is_known(now: list[float]) -> None:
    """The table was held by another run, or listing the source took all the time."""
    deadline = Deadline(now[0] + 10, clock=lambda: now[0])
    now[0] += 60
    assert "how many are left to do was not known yet" in str(deadline.error())


def test_workers_whose_clocks_are_ahead_are_told_from_a_time_that_is_over(now: list[float]) -> None:
    deadline = Deadline(now[0] + 1800, clock=lambda: now[0])
    deadline.expect(7)
    early = deadline.undone()
    assert isinstance(early, StorageError) and "which is in 30 min by the clock of" in str(early) and "7 are left" in str(early)
    now[0] += 1790  # clocks never agree to the second
    assert isinstance(deadline.undone(), StoppedError)


ARGUMENTS = ("extract", "--local", *RECIPE)


def test_a_run_that_is_overtaken_ends_with_its_units_done_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(tmp_path / "photos", 400)
    result_of(tlray(*ARGUMENTS, tmp_path / "photos", tmp_path / "reference"))
    began = list[float]()

    def is_past(closes: float | None) -> bool:
        assert closes is not None
        began.append(closes)
        return len(began) > 3

    with monkeypatch.context() as patch:
        patch.setattr("tlray.extraction.worker.unit_worker.is_past", is_past)
        patch.setattr(module, "MOST_DIFFERENCE_SECONDS", 3600)  # the driver's own clock has not come so far
        said = error_of(tlray(*ARGUMENTS, tmp_path / "photos", tmp_path / "t", "--budget-hours", "1"), 4)
    print(said)
    done = len(frame_of(tmp_path / "t"))
    assert 0 < done < 400
    assert f"and {400 - done} are left to do; finished units are committed: run the same command again" in said
    result = result_of(tlray(*ARGUMENTS, tmp_path / "photos", tmp_path / "t", "--budget-hours", "1"))
    assert (result["unchanged"], result["new"]) == (done, 400 - done)
    assert 3000 < result["deadline"]["spare_seconds"] < 3600
    assert_same(frame_of(tmp_path / "t"), frame_of(tmp_path / "reference"))


@pytest.mark.ray
@pytest.mark.slow
def test_workers_of_a_cluster_begin_no_unit_when_it_is_over(
    tmp_path: Path, ray_cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's clock is an hour late, and those of the workers are right."""
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.address)
    write_photos(tmp_path / "photos", 64)
    monkeypatch.setattr("tlray.extraction.extract.closes_at", lambda by, budget_hours: time.time() - 1)
    monkeypatch.setattr(Deadline, "is_over", False)
    monkeypatch.setattr(module, "GRACE_SECONDS", 3600)
    said = error_of(tlray("extract", *RECIPE, tmp_path / "photos", tmp_path / "t"), 4)
    assert "and 64 are left to do" in said
    assert len(frame_of(tmp_path / "t")) == 0
