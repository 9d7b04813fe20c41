"""What people read of a run while it goes on."""

import pytest

from tlray import progress
from tlray.progress import Progress, readable_seconds, readable_size


@pytest.mark.parametrize(
    ("size_bytes", "unknown", "expected"),
    [
        (0, 0, "0 bytes"),
        (41, 0, "41 bytes"),
        (41_300, 0, "41.3 kB"),
        (999_600, 0, "1 MB"),
        (23_000_000_000, 0, "23 GB"),
        (0, 40, "of unknown size"),
        (41_300, 2, "41.3 kB and 2 of unknown size"),
    ],
)
def test_sizes(size_bytes: int, unknown: int, expected: str) -> None:
    assert readable_size(size_bytes, unknown=unknown) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.042, "0.042 s"), (0.31, "0.31 s"), (12.4, "12 s"), (99, "99 s"), (200, "3 min"), (18_000, "5 h 0 min")],
)
def test_times(seconds: float, expected: str) -> None:
    assert readable_seconds(seconds) == expected


def test_the_workers_start_is_no_part_of_the_rate(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tlray")
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(10_000, total_is_known=True, things="texts") as bar:
        now[0] += 300  # workers start
        bar.update(100, 0, 1)
        assert "left" not in caplog.text
        now[0] += 20
        bar.update(2000, 1, 2)
    assert "2100 of 10000 texts, 1 failed, 100 texts/s, 79 s left, table version 2" in caplog.text


def test_a_bar_measures_from_the_first_images(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with Progress(10_000, total_is_known=True) as bar:
        assert bar._bar is not None
        bar._bar.start_t -= 300
        bar._bar.last_print_t -= 300
        bar.update(100, 0, 1)
        assert bar._bar.format_dict["elapsed"] < 5 and bar._bar.format_dict["initial"] == 100
    assert "100/10000" in capsys.readouterr().err
