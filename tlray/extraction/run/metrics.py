"""What Prometheus is told of a run: read from its totals when somebody asks.

Served on `metrics_port`; on a Ray cluster also beside Ray's own metrics (`tlray.extraction.on_ray.metrics`).
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping

from tlray.errors import ImageErrorCode
from tlray.extraction.run.report import COMPUTED, DRIVEN, WAITED
from tlray.extraction.run.totals import Totals
from tlray.metrics import Metric, served
from tlray.progress import say

CODES = [str(code) for code in ImageErrorCode if code is not ImageErrorCode.NO_IMAGES]
STAGES = [*COMPUTED, *WAITED, *DRIVEN]


def metrics_of(totals: Totals) -> list[Metric]:
    """The metrics of a run, of which Totals is read while it goes on.

    What is counted by codes and stages begins with a 0 for each: Prometheus does not see the growth of a series up to its first
    value.
    """
    with totals.lock:
        failed, images = totals.failed, totals.images
    failures = dict.fromkeys(CODES, 0) | _copy(totals.failures)
    seconds = dict.fromkeys(STAGES, 0.0) | _copy(totals.seconds)
    return [
        Metric("tlray_items", "gauge", "items that the run compared, by what it found", "found", _copy(totals.counts)),
        Metric("tlray_images_total", "counter", "images done", "outcome", {"ok": images - failed, "failed": failed}),
        Metric("tlray_failures_total", "counter", "failed images by code", "code", failures),
        Metric("tlray_stage_seconds_total", "counter", "seconds of all workers by stage", "stage", seconds),
        Metric("tlray_written_bytes_total", "counter", "bytes of the parts that workers wrote", "", {"": totals.written_bytes}),
        Metric("tlray_commits_total", "counter", "commits of the run", "", {"": totals.commits}),
        Metric(
            "tlray_committed_rows_total", "counter", "new rows that its commits made visible", "", {"": totals.committed_rows}
        ),
        Metric(
            "tlray_seconds_since_commit",
            "gauge",
            "since the last commit, or since there is work; 0 without work",
            "",
            {"": totals.seconds_since_commit},
        ),
        Metric("tlray_units_left", "gauge", "planned units that are not finished", "", {"": totals.units_left}),
        Metric("tlray_waiting_units", "gauge", "finished units that no reader sees yet", "", {"": totals.waiting_units()}),
        Metric(
            "tlray_resources",
            "gauge",
            "cores and GPUs of the run's workers",
            "kind",
            {"cpus": totals.resources.cpus, "gpus": totals.resources.gpus},
        ),
    ]


@contextlib.contextmanager
def served_if_asked(host: str, port: int | None, run_id: str, read: Callable[[], list[Metric]]) -> Iterator[None]:
    """Serve a run's metrics on a port, if one is named.

    Raises:
        ConfigError: the port is taken.
    """
    if port is None:
        yield
        return
    with served(host, port, run_id, read) as address:
        say(f"metrics: {address}")
        yield


def _copy(counts: Mapping[str, float]) -> dict[str, float]:
    return dict(list(counts.items()))  # a list is made at once, whatever other threads do
