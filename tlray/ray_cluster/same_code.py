"""Whether the workers of a cluster run the code that the driver runs: asked before anything is started or written.

What crosses processes is pickled, and read by whatever code is there. Ray refuses another version of itself and of Python by
what each node was started with; of tlray, and of environments that a job brings along, it knows nothing.
"""

from collections.abc import Collection

import ray.exceptions

from tlray.errors import GO_ON, ConfigError
from tlray.ray_cluster.code import MEND, Code, code_here, question
from tlray.ray_cluster.errors import last_line
from tlray.ray_cluster.nodes import NOBODY, ask_each, working_nodes

NODES_SHOWN = 3


def require_same_code(known: Collection[str] = ()) -> None:
    """Make sure that all nodes that work run what this process runs; those that have gone are not asked.

    Args:
        known: Ray's ids of nodes that need not be asked.

    Raises:
        ConfigError: some run something else; it names them and both versions. Or they cannot start a process for this job.
    """
    nodes = {node: address for node, address in working_nodes().items() if node not in known}
    here = code_here()
    try:
        answers = ask_each(list(nodes), question())
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
    which = f"{len(nodes)} nodes that have joined since the run began" if known else f"cluster's {len(nodes)} nodes that work"
    raise ConfigError(
        f"{len(others)} of the {which} run other code than this process: {said}; this process runs {here}; "
        f"{MEND}{f'; {GO_ON}' if known else ''}"
    )
