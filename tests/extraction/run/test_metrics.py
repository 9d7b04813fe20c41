"""What Prometheus reads of a run, by its own parser; over HTTP while the run goes on."""

import json
import re
import threading
from collections import Counter
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml
from deltalake import DeltaTable
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.schemas import ROOT
from tests.extraction.run.test_report import Resources
from tests.photos import RECIPE, error_of, result_of, tlray, write_photos
from tlray.extraction.run import metrics as run_metrics
from tlray.extraction.run.metrics import metrics_of
from tlray.extraction.run.totals import Totals
from tlray.metrics import exposition, served

MONITORING = ROOT / "cluster" / "monitoring"


def samples(text: str) -> dict[str, float]:
    families = text_string_to_metric_families(text)
    return {
        f"{each.name}{''.join(f'[{value}]' for value in each.labels.values())}": each.value
        for family in families
        for each in family.samples
    }


def test_a_runs_totals_as_prometheus_reads_them() -> None:
    totals = Totals(images=10, failures=Counter(corrupt=2, empty=1), seconds=Counter(encode=1.5), resources=Resources(8, 2))
    totals.counts.update({"listed": 12, "new": 10})
    totals.commits, totals.waiting_units = 3, lambda: 4
    found = samples(exposition(metrics_of(totals)))
    assert found.pop("tlray_seconds_since_commit") >= 0
    assert found == {
        "tlray_items[listed]": 12,
        "tlray_items[new]": 10,
        "tlray_images_total[ok]": 7,
        "tlray_images_total[failed]": 3,
        "tlray_failures_total[corrupt]": 2,
        "tlray_failures_total[empty]": 1,
        "tlray_stage_seconds_total[encode]": 1.5,
        "tlray_commits_total": 3,
        "tlray_waiting_units": 4,
        "tlray_resources[cpus]": 8,
        "tlray_resources[gpus]": 2,
    }


def test_a_run_is_scraped_while_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(tmp_path / "photos", 40)
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"bad")
    seen: list[dict[str, float]] = []
    said = run_metrics.say

    def scrape(text: str) -> None:
        said(text)
        if text.startswith("metrics: "):
            threading.Thread(target=follow, args=(text.removeprefix("metrics: "),)).start()

    def follow(address: str) -> None:
        while True:
            try:
                with urlopen(address) as answer:
                    seen.append(samples(answer.read().decode()))
            except OSError:  # the run has ended
                return

    monkeypatch.setattr(run_metrics, "say", scrape)
    arguments = ["extract", "--local", tmp_path / "photos", tmp_path / "t", *RECIPE, "--max-failed-fraction", "0.5"]
    result = result_of(tlray(*arguments, "--metrics-port", "0"))
    assert (result["ok"], result["failed"]) == (40, 1)
    done = [each["tlray_images_total[ok]"] + each["tlray_images_total[failed]"] for each in seen]
    assert done[0] == 0 and done == sorted(done) and done[-1] == 41
    assert seen[-1]["tlray_items[new]"] == 41 and seen[-1]["tlray_failures_total[not_an_image]"] == 1


def test_commits_are_counted_wherever_a_run_makes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its end too, where a short run makes all of them; by the log of the table."""
    paths = write_photos(tmp_path / "photos", 30)
    totals = [Totals(), Totals()]
    versions = []
    for one in totals:
        monkeypatch.setattr("tlray.extraction.extract.Totals", lambda one=one: one)
        result_of(tlray("extract", "--local", tmp_path / "photos", tmp_path / "t", *RECIPE))
        versions.append(DeltaTable(tmp_path / "t").version())
        paths.pop().unlink()
    found = [samples(exposition(metrics_of(one))) for one in totals]
    assert [each["tlray_commits_total"] for each in found] == [versions[0], versions[1] - versions[0]] == [1, 1]
    assert [each["tlray_waiting_units"] for each in found] == [0, 0]
    assert all(one.last_commit is not None for one in totals)


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    with served("127.0.0.1", 0, list) as address:
        port = address.rpartition(":")[2].partition("/")[0]
        arguments = ["extract", "--local", tmp_path / "photos", tmp_path / "t", *RECIPE, "--metrics-port", port]
        assert f"metrics_port {port}" in error_of(tlray(*arguments))
    assert not (tmp_path / "t").exists()


def queries() -> list[str]:
    dashboard = json.loads((MONITORING / "grafana.json").read_text())
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"]
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return [*panels, *(rule["expr"] for rule in rules)]


def test_dashboard_and_alerts_ask_for_metrics_that_there_are() -> None:
    """Under both names: a run's own, and as Ray passes them on."""
    known = {metric.name for metric in metrics_of(Totals())}
    asked = {name for query in queries() for name in re.findall(r"\btlray_\w+", query)}
    assert asked <= known and len(queries()) >= 9
    assert known - asked == set(), "each is on the dashboard or in a rule"
    assert all('__name__=~"(ray_)?' in query for query in queries())
