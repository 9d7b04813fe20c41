"""Joining a Ray cluster, for the time of a command."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from tlray.errors import ConfigError

CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")  # noqa: S108 - where Ray documents it
CONNECT_SECONDS = 2.0


@contextmanager
def joined() -> Iterator[None]:
    """Join the cluster that Ray's own settings name, or start one on this machine; leave it at the end.

    A caller that has joined one already stays in it.

    Raises:
        ConfigError: there is none at the address, or none could be started.
    """
    if ray.is_initialized():
        yield
        return
    # One of our own ends with the run and does without a dashboard, whose processes would share its cores.
    own = {} if os.environ.get("RAY_ADDRESS") or answers() else {"address": "local", "include_dashboard": False}
    try:
        ray.init(logging_level=logging.WARNING, **own)  # type: ignore[arg-type]
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"cannot join or start a Ray cluster: {error}; check RAY_ADDRESS (and RAY_AUTH_TOKEN), or do without Ray, which "
            "--local does where a command has it"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


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
