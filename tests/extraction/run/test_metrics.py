"""What Prometheus reads of a run, by its own parser; over HTTP while the run goes on."""

import re
import threading
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from deltalake import DeltaTable
from prometheus_client.parser import text_string_to_metric_families

from tests.extraction.run.test_report import Resources
from tests.photos import RECIPE, error_of, result_of, tlray, write_photos
from tests.prometheus import MONITORING, queries
from tlray.extraction.run import metrics as run_metrics
from tlray.extraction.run.metrics import metrics_of
from tlray.extraction.run.totals import Totals
from tlray.extraction.worker.pieces import Piece, WrittenParts
from tlray.lake.table.parts import Part
from tlray.metrics import Metric, exposition, served


def samples(text: str) -> dict[str, float]:
    """Values by name and label beside `run`, which all have."""
    found = [each for family in text_string_to_metric_families(text) for each in family.samples]
    assert len({each.labels.pop("run") for each in found}) == 1
    return {f"{each.name}{''.join(f'[{value}]' for value in each.labels.values())}": each.value for each in found}


def test_a_runs_totals_as_prometheus_reads_them() -> None:
    totals = Totals(images=10, failures=Counter(corrupt=2, empty=1), seconds=Counter(encode=1.5), resources=Resources(8, 2))
    totals.counts.update({"listed": 12, "new": 10})
    totals.commits, totals.committed_rows, totals.waiting_units = 3, 7, lambda: 4
    totals.written_bytes, totals.units_left = 5000, 6
    found = samples(exposition(metrics_of(totals), "run1"))
    zeros = {name for name, value in found.items() if not value}
    assert {"tlray_failures_total[fetch_failed]", "tlray_stage_seconds_total[decode]"} <= zeros
    assert "tlray_failures_total[no_images]" not in found
    assert {name: value for name, value in found.items() if value} == {
        "tlray_items[listed]": 12,
        "tlray_items[new]": 10,
        "tlray_images_total[ok]": 7,
        "tlray_images_total[failed]": 3,
        "tlray_failures_total[corrupt]": 2,
        "tlray_failures_total[empty]": 1,
        "tlray_stage_seconds_total[encode]": 1.5,
        "tlray_commits_total": 3,
        "tlray_committed_rows_total": 7,
        "tlray_written_bytes_total": 5000,
        "tlray_units_left": 6,
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
    found = [samples(exposition(metrics_of(one), "run1")) for one in totals]
    assert [each["tlray_commits_total"] for each in found] == [versions[0], versions[1] - versions[0]] == [1, 1]
    assert [each["tlray_committed_rows_total"] for each in found] == [30, 0]
    assert found[0]["tlray_written_bytes_total"] > 0 == found[1]["tlray_written_bytes_total"]
    for name in ("waiting_units", "units_left", "seconds_since_commit"):
        assert [each[f"tlray_{name}"] for each in found] == [0, 0]


def test_no_counter_ever_falls() -> None:
    """Prometheus takes that for a new beginning: images that failed never count as embedded for a moment."""
    seen: list[list[Metric]] = []
    totals, reader = Totals(), threading.Thread(target=lambda: seen.append(metrics_of(totals)))

    class Asked(Counter[str]):
        """A reader comes in the middle of the counting."""

        def update(self, *others: Any, **more: Any) -> None:
            if others[:1] != (None,):
                reader.start()
                reader.join(0.3)
            super().update(*others, **more)

    totals.failures = Asked()
    totals.add(Piece(0, 0, True, WrittenParts((Part(path="p", status="failed", rows=3, size_bytes=100),), {"corrupt": 3}), {}))
    reader.join()
    assert [each.values for each in seen[0] if each.name == "tlray_images_total"] == [{"ok": 0, "failed": 3}]


def test_only_work_stands_still() -> None:
    """A listing of hours commits nothing, and nobody is to be woken for it."""
    now = 0.0
    totals = Totals(clock=lambda: now)
    now = 5000.0
    assert totals.seconds_since_commit == 0
    with totals.work():
        totals.units_left = 3
        now += 100
        assert totals.seconds_since_commit == 100
        totals.has_committed(10)
        now += 7
        assert (totals.seconds_since_commit, totals.committed_rows) == (7, 10)
    now += 1000
    totals.has_committed(0)
    now += 1000
    assert (totals.seconds_since_commit, totals.units_left, totals.commits) == (0, 0, 2)


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    with served("127.0.0.1", 0, "run1", list) as address:
        port = address.rpartition(":")[2].partition("/")[0]
        arguments = ["extract", "--local", tmp_path / "photos", tmp_path / "t", *RECIPE, "--metrics-port", port]
        assert f"metrics_port {port}" in error_of(tlray(*arguments))
    assert not (tmp_path / "t").exists()


def test_dashboard_and_alerts_ask_for_metrics_that_there_are() -> None:
    """Under both names: a run's own, and as Ray passes them on."""
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"]
    asking = [*queries(), *(rule["expr"] for rule in rules)]
    known = {metric.name for metric in metrics_of(Totals())}
    asked = {name for query in asking for name in re.findall(r"\btlray_\w+", query)}
    assert asked <= known and len(asking) >= 9
    assert known - asked == set(), "each is on the dashboard or in a rule"
    assert all('__name__=~"(ray_)?' in query for query in asking)
