"""What is said of a run that stands still is said of the workers alone."""

import time
from collections.abc import Iterator

import pytest

from tlray.ray_cluster import waiting
from tlray.ray_cluster.waiting import said_while_waiting

pytestmark = pytest.mark.ray

SAID = "nothing from the workers for"


def test_only_waiting_for_workers_counts(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tlray")
    monkeypatch.setattr(waiting, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(waiting, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(waiting, "_state", lambda is_first: f"first {is_first}")

    def results() -> Iterator[int]:
        yield 0
        yield 1
        while SAID not in caplog.text:
            time.sleep(0.01)
        yield 2

    arriving = said_while_waiting(results())
    for expected in (0, 1):
        assert next(arriving) == expected
        time.sleep(0.5)  # as the driver does that commits
        assert SAID not in caplog.text
    assert list(arriving) == [2]
    assert "first False" in caplog.text and "first True" not in caplog.text
