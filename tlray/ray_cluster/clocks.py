"""Whether the clocks of a cluster's nodes agree with this machine's: asked when it is joined, as nothing else would tell.

A store refuses who signs with a wrong time, and each worker keeps a run's deadline by its own clock.
"""

from collections.abc import Mapping

from tlray.progress import readable_seconds, say

WRONG_SECONDS = 60.0
"""Machines that keep their time by the network differ by less than one; S3 takes a quarter of an hour."""

NODES_SHOWN = 3


def say_wrong_clocks(times: Mapping[str, float], asked: float, answered: float) -> None:
    """Say which nodes have another time than this machine.

    Args:
        times: what nodes took for the time, by what to call them.
        asked: when they were asked, by this machine's clock; it may be a minute before the last one answered.
        answered: when all had answered.
    """
    wrong = [
        f"that of {node} is {_difference(told, asked, answered)}"
        for node, told in times.items()
        if not asked - WRONG_SECONDS <= told <= answered + WRONG_SECONDS
    ]
    if wrong:
        more = f"; and {len(wrong) - NODES_SHOWN} more" if len(wrong) > NODES_SHOWN else ""
        say(
            f"clocks differ: {'; '.join(wrong[:NODES_SHOWN])}{more}. S3 refuses a machine whose clock is off by more than a "
            "quarter of an hour, and --by goes by each worker's own: set the one that is wrong"
        )


def _difference(told: float, asked: float, answered: float) -> str:
    if told > answered:
        return f"{readable_seconds(told - answered)} ahead of this machine's"
    return f"{readable_seconds(asked - told)} behind this machine's"
