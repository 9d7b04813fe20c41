"""Whether the workers of a cluster run the code that the driver runs: asked before anything is started or written.

What crosses processes is pickled, and read by whatever code is there. Ray refuses another version of itself and of Python by
what each node was started with; of tlray, and of environments that a job brings along, it knows nothing.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import ray.exceptions

from tlray.errors import ConfigError
from tlray.ray_cluster.errors import last_line
from tlray.ray_cluster.nodes import NOBODY, ask_each, working_nodes

NODES_SHOWN = 3


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


def require_same_code() -> None:
    """Make sure that all nodes that work run what this process runs; those that have gone are not asked.

    Raises:
        ConfigError: some run something else; it names them and both versions. Or they cannot start a process for this job.
    """
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in working_nodes()}
    here = _code_here()
    try:
        answers = ask_each(list(nodes), _question())
    except ray.exceptions.RayError as error:
        raise ConfigError(
            f"the cluster's nodes cannot be asked which code they run: {last_line(error)}; look at the job's runtime "
            "environment, and whether all nodes have the Python of this process"
        ) from error
    others = {node: Code(*answer) for node, answer in answers.items() if answer != NOBODY and Code(*answer) != here}
    if not others:
        return
    shown = list(others.items())[:NODES_SHOWN]
    said = "; ".join(f"node {node[:12]} at {nodes[node]} runs {code}" for node, code in shown)
    raise ConfigError(
        f"{len(others)} of the cluster's {len(nodes)} nodes that work run other code than this process: {said}; this process "
        f"runs {here}; expected the same on all of them: install one version on every node (one image), or have the job bring "
        "its own (`ray job submit` with a runtime environment)"
    )


@cache
def _code_here() -> Code:
    return Code(*_question()())


def _question() -> Callable[[], tuple[str, str, str]]:
    """What asks a process for its Code, with all that it needs inside, as it is sent to where tlray may not be."""

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

    return code
