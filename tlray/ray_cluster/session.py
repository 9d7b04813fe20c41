"""Joining a Ray cluster, for the time of a command."""

import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions
from ray._private import worker as ray_worker

from tlray.config.sections.stores import stores_in_use, use_stores
from tlray.errors import ConfigError
from tlray.machine.capacity import usable_cores
from tlray.progress import say
from tlray.ray_cluster.address import starts_own
from tlray.ray_cluster.heard import heard, shortened
from tlray.ray_cluster.restarts import said_if_restarted
from tlray.ray_cluster.same_code import check_nodes
from tlray.ray_cluster.watch import said_if_gone

_LEVEL = "RAY_BACKEND_LOG_LEVEL"

_UNSEEN = {
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "3600000",
}
"""Ends what all processes of a cluster report of themselves and of each task, the last one but for once an hour: one of our own
has no dashboard to show it, and its driver serves a run's metrics itself. A quarter of what Ray takes (docs/benchmarks.md)."""


@contextmanager
def joined(workers_env: Mapping[str, str] | None = None) -> Iterator[bool]:
    """Join the cluster that Ray's own settings name, or start one on this machine; leave it at the end.

    A caller that has joined one already stays in it.

    Args:
        workers_env: environment variables of the workers of a cluster that is started here.

    Yields:
        Whether it was started here.

    Raises:
        ConfigError: there is none at the address, none could be started, its nodes run other code, or one that is joined
            already cannot be told of the stores in use.
    """
    stores = stores_in_use()
    if ray.is_initialized():
        if stores:
            raise ConfigError(
                "this process has joined Ray already, whose workers cannot be told of `stores` any more; call ray.shutdown() "
                "first, or work with local=True"
            )
        check_nodes()
        yield False
        return
    is_own = starts_own()
    # Ray takes SIGTERM for itself, and leaves its handler behind.
    handler = signal.getsignal(signal.SIGTERM) if threading.current_thread() is threading.main_thread() else None
    # One of our own ends with the run and does without a dashboard, whose processes would share its cores. Ray itself looks at
    # a container's quota alone, rounds it down, and not at what else limits a process.
    own: dict[str, Any] = {}
    if is_own:
        own = {"address": "local", "include_dashboard": False, "num_cpus": usable_cores()}
    if stores:

        def tell_worker() -> None:
            use_stores(stores)

        own["runtime_env"] = {"worker_process_setup_hook": tell_worker}
    try:
        with _environment({**_settings(is_own), **(workers_env or {} if is_own else {})}), _without_advice():
            # What workers print stays in Ray's own logs: their errors come to us as errors, and the rest alarms for nothing.
            ray.init(logging_level=logging.WARNING, log_to_driver=False, **own)
            if is_own:  # nobody hears the one that reads these logs ten times a second, and Ray has no setting for it
                ray_worker._global_node.kill_log_monitor(check_alive=False)  # type: ignore[attr-defined]
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"cannot join or start a Ray cluster: {' '.join(str(error).split())}; check RAY_ADDRESS "
            "(and RAY_AUTH_TOKEN), or do without Ray, which --local does where a command has it"
        ) from error
    try:
        with heard() as hear, said_if_restarted(hear), said_if_gone():
            if not is_own:
                check_nodes()
            yield is_own
    finally:
        ray.shutdown()
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _settings(is_own: bool) -> dict[str, str]:
    """Environment variables by which Ray is set, but for those that the user has set.

    Ray's core prints to stderr, from errors on, and one that is none with each pool of Ray Data (ray-project/ray 53727). Its
    actors here load all that they need by themselves. What really fails comes as a Python error.
    """
    ours = {_LEVEL: "fatal", **(_UNSEEN if is_own else {})}
    return {name: value for name, value in ours.items() if name not in os.environ}


@contextmanager
def _without_advice() -> Iterator[None]:
    """While Ray starts: not that it takes its log's level from us, nor that a cluster of our own is locked, which is well."""
    logger = logging.getLogger("ray._private.authentication.authentication_token_setup")
    level = logger.level
    logger.setLevel(logging.ERROR)
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:  # Ray's core writes past Python
        stderr = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            kept.seek(0)
            for line in kept:
                if _LEVEL.encode() not in line:
                    os.write(stderr, line)
            os.close(stderr)
            logger.setLevel(level)


def address() -> str:
    """The address of the cluster that was joined, as Ray writes it."""
    return str(ray.get_runtime_context().gcs_address)


@contextmanager
def quiet_data() -> Iterator[None]:
    """Have Ray Data tell its warnings alone, in our log, for a while.

    Plans and progress are ours to report; Ray Data's own log has them all.
    """
    data, ours = logging.getLogger("ray.data"), _Warnings(logging.WARNING)
    shown = [handler for handler in data.handlers if handler.name == "console"]
    levels = [handler.level for handler in shown]
    progress = logging.getLogger("ray.data._internal.progress")
    level = progress.level
    try:
        for handler in shown:
            handler.setLevel(logging.CRITICAL)
        data.addHandler(ours)
        progress.setLevel(logging.ERROR)
        yield
    finally:
        data.removeHandler(ours)
        for handler, before in zip(shown, levels, strict=True):
            handler.setLevel(before)
        progress.setLevel(level)


class _Warnings(logging.Handler):
    """Says what Ray Data warns of, but not what is as it should be: that pools which start whole do not grow.

    Its errors come as exceptions, and what it logs of them beside is a traceback.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Say a record in a line."""
        text = " ".join(record.getMessage().split())
        if record.levelno < logging.ERROR and "will not allow it to scale up" not in text:
            say(f"Ray Data says: {shortened(text)}")


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set the environment of processes that are started meanwhile: theirs, and not this one's, which keeps its own."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
