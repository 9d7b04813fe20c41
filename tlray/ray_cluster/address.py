"""Which Ray cluster a command joins, by Ray's own rules; told without Ray, which is slow to import."""

import os
import socket
from pathlib import Path

CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")  # noqa: S108 - where Ray documents it
CONNECT_SECONDS = 2.0


def named() -> str:
    """What RAY_ADDRESS says, which `ray job submit` sets; `local` asks for a cluster of one's own."""
    return os.environ.get("RAY_ADDRESS", "")


def is_there() -> bool:
    """Whether a cluster is named, or runs on this machine."""
    return bool(named()) or answers()


def starts_own() -> bool:
    """Whether to join a cluster means to start one here."""
    return named() == "local" or not is_there()


def answers(noted: Path = CURRENT_CLUSTER) -> bool:
    """Whether the cluster that this machine ran last is still there.

    One whose driver was killed leaves a note of its address, which Ray believes: it then tries for minutes to join it.
    """
    try:
        host, _, port = noted.read_text().strip().rpartition(":")  # which may be another user's, and not for us to read
        return is_listening(host, int(port))
    except (OSError, ValueError):
        return False


def is_listening(host: str, port: int) -> bool:
    """Whether a connection is taken there."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
