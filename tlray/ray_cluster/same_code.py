"""Whether the workers of a cluster run the code that the driver runs, at its time: asked before anything is started or written.

What crosses processes is pickled, and read by whatever code is there. Ray refuses another version of itself and of Python by
what each node was started with; of tlray, and of environments that a job brings along, it knows nothing.
"""

import time
from collections.abc import Collection

import ray.exceptions

from tlray.errors import GO_ON, ConfigError
from tlray.ray_cluster.clocks import say_wrong_clocks
from tlray.ray_cluster.code import MEND, Code, code_here, question
from tlray.ray_cluster.errors import last_line
from tlray.ray_cluster.nodes import NOBODY, ask_each, working_nodes

NODES_SHOWN = 3


def check_nodes(known: Collection[str] = ()) -> None:
    """Make sure that all nodes that work run what this process runs, and say which have another time; those gone are not asked.

    Args:
        known: Ray's ids of nodes that need not be asked.

    Raises:
        ConfigError: some run something else; it names them and both versions. Or they cannot start a process for this job.
    """
    nodes = {node: f"node {node[:12]} at {address}" for node, address in working_nodes().items() if node not in known}
    here, asked = code_here(), time.time()
    try:
        answers = ask_each(list(nodes), question())
    except ray.exceptions.RayError as error:
        raise ConfigError(
            f"the cluster's nodes cannot be asked which code they run: {last_line(error)}; look at the job's runtime "
            "environment, and whether all nodes have the Python of this process"
        ) from error
    told = {nodes[node]: answer for node, answer in answers.items() if answer != NOBODY}
    say_wrong_clocks({node: seconds for node, (_, seconds) in told.items()}, asked, time.time())
    others = {node: Code(*code) for node, (code, _) in told.items() if Code(*code) != here}
    if not others:
        return
    said = "; ".join(f"{node} runs {code}" for node, code in list(others.items())[:NODES_SHOWN])
    which = f"{len(nodes)} nodes that have joined since the run began" if known else f"cluster's {len(nodes)} nodes that work"
    raise ConfigError(
        f"{len(others)} of the {which} run other code than this process: {said}; this process runs {here}; "
        f"{MEND}{f'; {GO_ON}' if known else ''}"
    )
