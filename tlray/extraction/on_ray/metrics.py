"""The metrics of a run beside Ray's own, wherever these are scraped from; Ray puts `ray_` before their names."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator

from ray.util import metrics as of_ray

from tlray.machine.timers import repeated
from tlray.metrics import Metric

UPDATE_SECONDS = 5.0


@contextlib.contextmanager
def told_to_ray(run_id: str, read: Callable[[], list[Metric]]) -> Iterator[None]:
    """Keep Ray's metrics where the run is, while it goes on; they have its id as the label `run`.

    Args:
        run_id: of the run.
        read: the values of this moment.
    """
    teller = _Teller(run_id)
    try:
        with repeated(lambda: teller.tell(read()), UPDATE_SECONDS, name="metrics"):
            yield
    finally:
        teller.tell(read())


class _Teller:
    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._made: dict[str, of_ray.Counter | of_ray.Gauge] = {}
        self._told: defaultdict[tuple[str, str], float] = defaultdict(float)

    def tell(self, metrics: list[Metric]) -> None:
        for metric in metrics:
            kind = of_ray.Counter if metric.kind == "counter" else of_ray.Gauge
            if metric.name not in self._made:
                keys = ("run", metric.label) if metric.label else ("run",)
                self._made[metric.name] = kind(metric.name, description=metric.about, tag_keys=keys)
            for value, number in metric.values.items():
                self._tell_one(metric, value, number)

    def _tell_one(self, metric: Metric, value: str, number: float) -> None:
        tags = {"run": self._run_id, **({metric.label: value} if metric.label else {})}
        made = self._made[metric.name]
        if isinstance(made, of_ray.Gauge):
            made.set(number, tags=tags)
            return
        more = number - self._told[metric.name, value]
        if more > 0:
            made.inc(more, tags=tags)
            self._told[metric.name, value] = number
