"""What a run does on a cluster beside its units: workers join parts, and are asked whether they see the driver's files."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.extraction.test_in_process import assert_same
from tests.photos import RECIPE, error_of, frame_of, result_of, s3_options, tlray, write_photos
from tests.ray_cluster import RayCluster
from tlray.lake.storage.open import open_store
from tlray.ray_cluster.nodes import NOBODY, on_each
from tlray.ray_cluster.waiting import said_while_waiting

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

IMAGES = 120


def test_workers_join_parts_while_the_run_goes_on(
    lake: str, ray_cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tlray.lake.table.rewrite.PART_ROWS", 40)  # the driver alone decides
    monkeypatch.setattr("tlray.extraction.commit.committer.MANY_SMALL_PARTS", 2)
    write_photos(tmp_path / "photos", IMAGES)
    arguments = ["extract", "--source.uri", tmp_path / "photos", *RECIPE]
    outcome = tlray(*arguments, "--table", f"{lake}/joined")
    assert result_of(outcome)["ok"] == IMAGES
    frame = frame_of(f"{lake}/joined", s3_options())
    result_of(tlray(*arguments, "--table", tmp_path / "reference", "--local"))
    assert_same(frame, frame_of(tmp_path / "reference"))
    store = open_store(lake)
    entries = [uri for page in store.list(f"{lake}/joined/_delta_log") for uri in page["uri"].to_pylist()]
    lines = [line for uri in sorted(entries) if uri.endswith(".json") for line in store.read(uri).data.splitlines()]
    added = [json.loads(line)["add"] for line in lines if b'"add"' in line]
    joined = [json.loads(each["stats"])["numRecords"] for each in added if "-joined-" in each["path"]]
    assert joined and sum(joined) == IMAGES
    port = ray_cluster.address.rpartition(":")[2]
    assert re.search(
        rf"the Ray cluster at [\d.]+:{port}: 1 node \([\d.]+\) with 2 cores; it takes up to 1 worker", outcome.stderr
    )
    times = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (?=\S)")
    assert all(times.match(line) for line in outcome.stderr.splitlines()), outcome.stderr


def test_files_that_only_the_driver_sees_are_refused_before_anything_is_written(
    lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By way of /proc/self, which is another place in each process."""
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", 3)
    here = "/proc/self/cwd"
    said = error_of(tlray("extract", f"{here}/photos", f"{lake}/never", *RECIPE))
    assert "SourceError" in said and f"{here}/photos/" in said and "1 of the cluster's 1 nodes" in said
    assert not list(open_store(lake).list(f"{lake}/never"))
    said = error_of(tlray("extract", tmp_path / "photos", f"{here}/table", *RECIPE))
    assert f"file://{here}/table is on this machine alone" in said
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    assert result_of(tlray("extract", f"{here}/photos", f"{here}/table", "--local", *RECIPE))["ok"] == 3


def test_a_cluster_that_says_nothing_is_asked_why(
    lake: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    caplog.set_level("INFO", "tlray")
    monkeypatch.setattr("tlray.ray_cluster.waiting.SILENT_SECONDS", 0.5)

    def nothing_at_first() -> Iterator[int]:
        while "nothing from the workers for" not in caplog.text:
            time.sleep(0.01)
        yield 0

    ray.init(log_to_driver=False)
    try:
        assert list(said_while_waiting(nothing_at_first())) == [0]
        assert "2 of 2 CPUs free; no worker has started" in caplog.text
        node = ray.nodes()[0]["NodeID"]
        assert on_each([node], int, "no number") == {node: NOBODY}
        assert f"node {node} could not be asked: ValueError: invalid literal" in caplog.text
    finally:
        ray.shutdown()


def test_rays_metrics_have_the_runs(monkeypatch: pytest.MonkeyPatch, ray_cluster: RayCluster) -> None:
    """What is told to Ray: counters by what they grew, gauges as they are."""
    import ray
    from ray.util import metrics as of_ray

    from tlray.extraction.on_ray import metrics as ours
    from tlray.extraction.run.metrics import metrics_of
    from tlray.extraction.run.totals import Totals

    told: list[tuple[str, float, tuple[str, ...]]] = []
    for kind, method in ((of_ray.Counter, "inc"), (of_ray.Gauge, "set")):

        def note(self: of_ray.Metric, value: float, tags: dict[str, str], method: str = method) -> None:
            told.append((f"{method} {self.info['name']}", value, tuple(tags.values())))

        monkeypatch.setattr(kind, method, note)
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.address)
    ray.init(log_to_driver=False)
    try:
        teller, totals = ours._Teller("run1"), Totals()
        for images in (3, 3, 10):
            totals.images = images
            teller.tell(metrics_of(totals))
    finally:
        ray.shutdown()
    grown = [(value, tags) for name, value, tags in told if name == "inc tlray_images_total"]
    assert grown == [(3, ("run1", "ok")), (7, ("run1", "ok"))]
    assert sum(name == "set tlray_waiting_units" for name, _, _ in told) == 3
