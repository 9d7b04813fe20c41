"""What Prometheus itself says of cluster/monitoring: rules by promtool, the dashboard's queries on runs that it has scraped."""

import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from tests.photos import RECIPE, result_of, tlray, write_photos
from tests.prometheus import MONITORING, Prometheus, program, queries
from tests.ray_cluster import RayCluster
from tlray.extraction.run import metrics as run_metrics
from tlray.extraction.run.run import Run
from tlray.extraction.run.totals import Totals

PHOTOS, BAD = 100, 3


def promtool(*arguments: str) -> str:
    done = subprocess.run([program("promtool"), *arguments], cwd=MONITORING, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_takes_rules_and_configuration() -> None:
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"]
    assert f"SUCCESS: {len(rules)} rules found" in promtool("check", "rules", "alerts.yaml")
    assert "is valid prometheus config file" in promtool("check", "config", "prometheus.yml")


def test_each_alert_fires_and_does_not() -> None:
    promtool("test", "rules", "alerts_test.yaml")
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"]
    cases = [
        each
        for test in yaml.safe_load((MONITORING / "alerts_test.yaml").read_text())["tests"]
        for each in test["alert_rule_test"]
    ]
    for rule in rules:
        fires = {bool(each["exp_alerts"]) for each in cases if each["alertname"] == rule["alert"]}
        assert fires == {True, False}, rule["alert"]


def test_promtool_says_when_a_rule_does_not_fire(tmp_path: Path) -> None:
    """So that the test above can fail."""
    (tmp_path / "alerts.yaml").write_text((MONITORING / "alerts.yaml").read_text().replace("> 900", "> 9000"))
    (tmp_path / "alerts_test.yaml").write_text((MONITORING / "alerts_test.yaml").read_text())
    done = subprocess.run(
        [program("promtool"), "test", "rules", "alerts_test.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0 and "TlrayStandsStill" in done.stdout + done.stderr


def lake_of(folder: Path) -> list[str | Path]:
    """Photographs, some of them broken, and the command over them."""
    write_photos(folder / "photos", PHOTOS)
    for number in range(BAD):
        (folder / "photos" / f"{number}.jpg").write_bytes(b"bad")
    return ["extract", folder / "photos", folder / "table", *RECIPE, "--max-failed-fraction", "0.5"]


def held_until(monkeypatch: pytest.MonkeyPatch, seen: Callable[[str, Totals], object]) -> None:
    """A run waits before it ends, all committed, until something has been seen; that is told its id and its totals."""
    result = Run.result

    def wait(run: Run) -> dict:
        seen(run._run_id, run._totals)
        return result(run)

    monkeypatch.setattr(Run, "result", wait)


def check(prometheus: Prometheus, prefix: str, run_id: str, totals: Totals) -> None:
    """Each query of the dashboard has data; what is counted is what the run counted; rules are healthy and silent."""
    prometheus.wait(scraped_twice(prefix))
    for query in queries():
        prometheus.wait(query)

    def by(label: str, name: str) -> dict[str, float]:
        found = prometheus.query(f'{prefix}{name}{{run="{run_id}"}}')
        return {labels[label]: value for labels, value in found if value}

    assert by("outcome", "tlray_images_total") == {"ok": PHOTOS, "failed": BAD}
    assert by("code", "tlray_failures_total") == {"not_an_image": BAD}
    assert by("found", "tlray_items") == {"listed": PHOTOS + BAD, "new": PHOTOS + BAD}
    assert by("run", "tlray_committed_rows_total") == {run_id: PHOTOS + BAD}
    assert by("run", "tlray_commits_total") == {run_id: totals.commits} and totals.commits
    assert by("run", "tlray_written_bytes_total") == {run_id: totals.written_bytes}
    assert by("run", "tlray_units_left") == by("run", "tlray_waiting_units") == by("run", "tlray_seconds_since_commit") == {}
    assert by("stage", "tlray_stage_seconds_total") == pytest.approx({k: v for k, v in totals.seconds.items() if v})
    types = prometheus.get("metadata")
    for name, kind in {"tlray_images_total": "counter", "tlray_items": "gauge", "tlray_commits_total": "counter"}.items():
        known = types.get(prefix + name) or types[(prefix + name).removesuffix("_total")]  # as OpenMetrics names a counter
        assert {each["type"] for each in known} == {kind}
    (group,) = prometheus.get("rules")["groups"]
    assert {rule["health"] for rule in group["rules"]} == {"ok"} and {rule["state"] for rule in group["rules"]} == {"inactive"}


def scraped_twice(prefix: str) -> str:
    """True when all images were seen by at least two scrapes, which is what a rate takes."""
    return f"count_over_time((sum({prefix}tlray_images_total) == {PHOTOS + BAD})[1m:1s]) > 3"


def test_a_run_without_ray_is_scraped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, stack = run_metrics.say, ExitStack()
    found: list[Prometheus] = []
    checked: list[None] = []

    def say(text: str) -> None:
        said(text)
        if text.startswith("metrics: "):
            place = text.removeprefix("metrics: http://").removesuffix("/metrics")
            found.append(stack.enter_context(Prometheus(tmp_path, "tlray", place)))
            found[0].wait("up == 1")

    monkeypatch.setattr(run_metrics, "say", say)
    program("prometheus")
    with stack:
        held_until(monkeypatch, lambda *run: checked.append(check(found[0], "", *run)))
        result_of(tlray(*lake_of(tmp_path), "--local", "--metrics-port", "0"))
    assert checked


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_on_ray_is_scraped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the file of addresses that Ray keeps."""
    program("prometheus")
    checked: list[None] = []
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    with RayCluster(tmp_path, dashboard=True) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with Prometheus(tmp_path, "ray", str(cluster.service_discovery)) as prometheus:
            prometheus.wait("up == 1")
            held_until(monkeypatch, lambda *run: checked.append(check(prometheus, "ray_", *run)))
            result_of(tlray(*lake_of(tmp_path), "--no-local"))
    assert checked
