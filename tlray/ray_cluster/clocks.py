"""Whether the clocks of a cluster's nodes agree with this machine's: asked when it is joined, as nothing else would tell.

A store refuses who signs with a wrong time, and each worker keeps a run's deadline by its own clock.
"""

import time

from tlray.progress import readable_seconds, say
from tlray.ray_cluster.nodes import NOBODY, on_each, working_nodes

WRONG_SECONDS = 60.0
"""Machines that keep their time by the network differ by less than one; S3 takes a quarter of an hour."""

NODES_SHOWN = 3


def say_wrong_clocks() -> None:
    """Say which nodes that work have another time than this machine."""
    nodes = working_nodes()
    asked = time.time()
    answers = on_each(list(nodes), time.time)
    answered = time.time()
    wrong = [
        f"that of node {node[:12]} at {nodes[node]} is {_difference(answer, asked, answered)}"
        for node, answer in answers.items()
        if answer != NOBODY and not asked - WRONG_SECONDS <= answer <= answered + WRONG_SECONDS
    ]
    if wrong:
        more = f"; and {len(wrong) - NODES_SHOWN} more" if len(wrong) > NODES_SHOWN else ""
        say(
            f"clocks differ: {'; '.join(wrong[:NODES_SHOWN])}{more}. S3 refuses a machine whose clock is off by more than a "
            "quarter of an hour, and --by goes by each worker's own: set the one that is wrong"
        )


def _difference(answer: float, asked: float, answered: float) -> str:
    if answer > answered:
        return f"{readable_seconds(answer - answered)} ahead of this machine's"
    return f"{readable_seconds(asked - answer)} behind this machine's"
