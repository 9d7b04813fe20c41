"""What a worker must have to work for a run, asked where it is: its node may have joined after all others were asked."""

import functools
import socket
from pathlib import Path
from typing import NamedTuple

from tlray.errors import SourceError
from tlray.ray_cluster.code import Code, require_code


class Needs(NamedTuple):
    """What a worker must have.

    Attributes:
        code: that the driver runs.
        sees: files and folders of the driver that are on no store; no folder of them is empty.
    """

    code: Code
    sees: tuple[str, ...] = ()


@functools.cache
def require(needs: Needs | None) -> None:
    """Make sure, once a process, that this worker has what a run needs of it; None needs nothing.

    Raises:
        ConfigError: it has other code than the driver, whose pickled orders it would misunderstand.
        SourceError: it does not see the driver's files: its images would all be missing, or its parts be where nobody looks.
    """
    if needs is None:
        return
    require_code(needs.code)
    for path in map(Path, needs.sees):
        if not (path.is_file() or (path.is_dir() and any(path.iterdir()))):
            raise SourceError(
                f"{socket.gethostname()}, a node that has joined since the run began, does not see {path}; expected s3:// or a "
                "folder that all nodes share"
            )
