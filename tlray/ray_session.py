"""Joining a Ray cluster, for the time of a command."""

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray

from tlray.errors import ConfigError

CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")  # noqa: S108 - where Ray documents it
CONNECT_SECONDS = 2.0


@contextmanager
def joined(workers_env: Mapping[str, str] | None = None) -> Iterator[bool]:
    """Join the cluster that Ray's own settings name, or start one on this machine; leave it at the end.

    A caller that has joined one already stays in it.

    Args:
        workers_env: environment variables of the workers of a cluster that is started here.

    Yields:
        Whether it was started here.

    Raises:
        ConfigError: there is none at the address, or none could be started.
    """
    if ray.is_initialized():
        yield False
        return
    address = os.environ.get("RAY_ADDRESS")
    is_own = address == "local" or not (address or answers())
    # One of our own ends with the run and does without a dashboard, whose processes would share its cores.
    own = {"address": "local", "include_dashboard": False} if is_own else {}
    try:
        with _environment(workers_env or {} if is_own else {}):
            ray.init(logging_level=logging.WARNING, **own)  # type: ignore[arg-type]
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"cannot join or start a Ray cluster: {error}; check RAY_ADDRESS (and RAY_AUTH_TOKEN), or do without Ray, which "
            "--local does where a command has it"
        ) from error
    try:
        yield is_own
    finally:
        ray.shutdown()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Of processes that are started meanwhile: theirs, and not this one's, which keeps its own."""
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


def answers(noted: Path = CURRENT_CLUSTER) -> bool:
    """Whether the cluster that this machine ran last is still there.

    One whose driver was killed leaves a note of its address, which Ray believes: it then tries for minutes to join it.
    """
    if not noted.exists():
        return False
    host, _, port = noted.read_text().strip().rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True
