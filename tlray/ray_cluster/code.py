"""What code a process runs, and at which time, so that two can be compared. Needs neither Ray nor torch: what asks has none."""

import socket
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from tlray.errors import GO_ON, ConfigError

MEND = (
    "expected the same on all of them: install one version on every node (one image), or have the job bring its own "
    "(`ray job submit` with a runtime environment)"
)


class Code(NamedTuple):
    """What code a process runs: its Python, and its tlray.

    Attributes:
        python: its version, such as "3.11".
        version: of tlray; "no tlray" where there is none.
        digest: of tlray's sources, as two checkouts may have one version.
    """

    python: str
    version: str
    digest: str

    def __str__(self) -> str:
        digest = f" (sources {self.digest})" if self.digest else ""
        return f"{self.version}{digest} on Python {self.python}"


def require_code(of_driver: Code) -> None:
    """Make sure that this process, a worker's, runs what its driver runs.

    Raises:
        ConfigError: it does not; which node, and both versions.
    """
    here = code_here()
    if here != of_driver:
        raise ConfigError(
            f"{socket.gethostname()}, a node that has joined or was changed since the run began, runs {here}; the "
            f"driver runs {of_driver}; {MEND}; {GO_ON}"
        )


@cache
def code_here() -> Code:
    """What this process runs, as it is on disk when it is asked first."""
    return Code(*question()()[0])


def question() -> Callable[[], tuple[tuple[str, str, str], float]]:
    """What asks a process for its Code and the time, with all that it needs inside, as it is sent to where tlray may not be."""

    def code() -> tuple[str, str, str]:
        import hashlib
        import platform
        import re
        from importlib.util import find_spec
        from pathlib import Path

        python = ".".join(platform.python_version_tuple()[:2])
        found = find_spec("tlray")
        if found is None or found.origin is None:
            return python, "no tlray", ""
        folder = Path(found.origin).parent
        digest = hashlib.sha256()
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(path.read_bytes())
        said = (folder / "version.py").read_text() if (folder / "version.py").is_file() else ""
        version = re.search(r'__version__ = "(.*)"', said)
        return python, f"tlray {version[1] if version else 'of unknown version'}", digest.hexdigest()[:12]

    def code_and_time() -> tuple[tuple[str, str, str], float]:
        import time

        return code(), time.time()

    return code_and_time
