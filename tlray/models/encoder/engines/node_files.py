"""Files that one process of a machine makes for all others of it: one maker at a time, and nothing read that is not whole."""

import fcntl
import hashlib
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DIGEST_BYTES = hashlib.sha256().digest_size

_log = logging.getLogger(__name__)


def cache_folder(kind: str) -> Path:
    """Where files of a kind are kept, in the user's cache: home folders outlive containers, and temporary folders do not."""
    return Path.home() / ".cache" / "tlray" / kind


def cpu_flags() -> str:
    """The instruction sets of this processor: home folders are shared between machines of several kinds."""
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return platform.processor()
    flags = [line for line in information.read_text().splitlines() if line.startswith(("flags", "Features"))]
    return flags[0] if flags else platform.processor()


@contextmanager
def only_one(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process got a lock; one that is killed gives it back.

    Args:
        path: of the lock's file.
        wait: until nobody else has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all; by one process at a time, which has the lock.

    What a killed one left half written is written over by the next.

    Raises:
        OSError: it cannot be written, as on a full disk; nothing of it stays there.
    """
    unfinished = path.with_suffix(".part")
    try:
        with unfinished.open("wb") as file:
            file.write(hashlib.sha256(content).digest())
            file.write(content)
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def read_whole(path: Path) -> bytes | None:
    """What `write_whole` wrote; None where there is nothing, or something else, which is said and removed."""
    try:
        with path.open("rb") as file:
            digest, content = file.read(_DIGEST_BYTES), file.read()
    except FileNotFoundError:
        return None
    if hashlib.sha256(content).digest() == digest:
        return content
    _log.warning("%s is not what was written there, and is made anew", path)
    path.unlink(missing_ok=True)
    return None
