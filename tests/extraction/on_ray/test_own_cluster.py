"""What a cluster that is started for a run does without."""

import os
import subprocess

import pytest

from tlray.ray_cluster.session import joined

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_it_reports_to_nobody_but_as_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("RAY_task_events_report_interval_ms", "5000")
    before = dict(os.environ)
    with joined() as is_own:
        assert is_own
        assert ray.get(ray.remote(os.getenv).remote("RAY_enable_metrics_collection")) == "0"
        assert ray.get(ray.remote(os.getenv).remote("RAY_task_events_report_interval_ms")) == "5000"
        children = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True, check=True)
        assert "raylet" in children.stdout and "log_monitor" not in children.stdout
        assert dict(os.environ).items() >= before.items() and "RAY_enable_metrics_collection" not in os.environ
