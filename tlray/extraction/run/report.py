"""Where the time of a run went, what bounded it, and what to add: pure arithmetic on the seconds that workers report."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COMPUTED = ("decode", "encode", "write")
"""Stages that keep cores busy (with GPUs, `encode` keeps those busy)."""

WAITED = ("fetch", "upload", "transfer")
"""Stages in which a worker waits: for the store, or for pixels to come through the object store."""

START = "start"
"""Until work on the first images begins; everything waits for it."""

DRIVEN = ("list", "commit", "compact")
"""Stages that the driver does alone, and that no worker makes faster."""

BUSY = 0.85
"""From this part of its time on a resource counts as fully used: what is left goes into the beginning and the end of a run."""


@dataclass(frozen=True)
class Resources:
    """The hardware that a run worked with.

    Attributes:
        cpus: cores of its workers.
        gpus: encoders with a GPU of their own.
    """

    cpus: float
    gpus: float


def report(
    seconds: Mapping[str, float], *, images: int, start_seconds: float, run_seconds: float, resources: Resources
) -> dict[str, Any]:
    """What took a run's time and what to add, for the result's last keys.

    Args:
        seconds: by stage, summed over all workers.
        images: embedded or failed.
        start_seconds: of `run_seconds`, until work on the first images began, listing apart: imports, weights, workers.
        run_seconds: of the whole run.
        resources: that they had.

    Returns:
        `bottleneck`: a stage; `advice`: a sentence; `stages`: per stage its seconds and, where any image was worked on, its
        share: the part of the run's time that its resource (cores, GPUs, the driver) spent on it.
    """
    steady_seconds = max(run_seconds - start_seconds, 0.0)
    stages = {
        stage: {"seconds": round(value, 3)}
        | ({"share": round(value / max(_capacity(stage, run_seconds, resources), 1e-9), 3)} if images else {})
        for stage, value in sorted({**seconds, START: start_seconds}.items(), key=lambda item: -item[1])
        if value
    }
    if start_seconds > steady_seconds:
        bottleneck, advice = START, "starting and loading took most of the time; that does not grow with the number of images"
    else:
        bottleneck, advice = _bound(seconds, steady_seconds, resources)
    return {"bottleneck": bottleneck, "advice": advice, "stages": stages}


def _capacity(stage: str, run_seconds: float, resources: Resources) -> float:
    if stage in (START, *DRIVEN):
        return run_seconds
    return run_seconds * (resources.gpus if stage == "encode" and resources.gpus else resources.cpus)


def _bound(seconds: Mapping[str, float], steady_seconds: float, resources: Resources) -> tuple[str, str]:
    driver = max(DRIVEN, key=lambda stage: seconds.get(stage, 0.0))
    if seconds.get(driver, 0.0) > steady_seconds / 2:
        return driver, f"{driver}-bound: the driver spent {seconds[driver]:.1f} s on it, and no worker makes that faster"
    on_cores = [stage for stage in COMPUTED if not (stage == "encode" and resources.gpus)]
    core_seconds = sum(seconds.get(stage, 0.0) for stage in on_cores)
    core_use = core_seconds / max(steady_seconds * resources.cpus, 1e-9)
    largest = max(on_cores, key=lambda stage: seconds.get(stage, 0.0))
    waited = max(WAITED, key=lambda stage: seconds.get(stage, 0.0))
    if resources.gpus:
        gpu_use = seconds.get("encode", 0.0) / max(steady_seconds * resources.gpus, 1e-9)
        if gpu_use >= BUSY:
            return "encode", f"encode-bound: the GPUs were busy {_percent(gpu_use)} of the time; more GPUs make it faster"
        if core_use >= BUSY:
            missing = math.ceil(resources.cpus * (1 / max(gpu_use, 0.01) - 1))
            return largest, (
                f"{largest}-bound: {missing} more CPUs would use the GPUs fully, "
                f"which were busy {_percent(gpu_use)} of the time"
            )
        return waited, (
            f"{waited}-bound: GPUs ({_percent(gpu_use)}) and cores ({_percent(core_use)}) had time left; "
            "look at the store's bandwidth and the network"
        )
    if core_use >= BUSY or seconds.get(waited, 0.0) < core_seconds:
        share = seconds.get(largest, 0.0) / max(core_seconds, 1e-9)
        return largest, (
            f"{largest}-bound: {_percent(min(core_use, 1.0))} of the cores' time was used, {_percent(share)} of that for "
            f"{largest}; more cores{' or a GPU' if largest == 'encode' else ''} make it faster"
        )
    return waited, (
        f"{waited}-bound: the cores were busy {_percent(core_use)} of the time, and waited for the store; "
        "run nearer to it, or with more workers"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
