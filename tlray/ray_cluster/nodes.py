"""The nodes of a cluster that work, and asking each of them something."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tlray.progress import readable_seconds, say
from tlray.ray_cluster.errors import last_line

ANSWER_SECONDS = 60.0
"""A node that starts a process for the question takes some seconds; one that has gone never answers."""

NOBODY: Final = "nobody"

_GONE = (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError)


def working_nodes() -> dict[str, str]:
    """Addresses by Ray's id of the nodes that are there and have a core or a GPU to work with: all but a head that must not."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in nodes
        if node["Alive"] and any(node["Resources"].get(kind, 0) > 0 for kind in ("CPU", "GPU"))
    }


@ray.remote(num_cpus=0)
def call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """A task that calls a function; it claims no core, as the actors and tasks of a run claim all of them for hours."""
    return function(*arguments, **options)


def on_each(nodes: Sequence[str], function: Callable[..., Any], /, *arguments: Any) -> dict[str, Any]:
    """Have every one of some nodes call a function, and wait for them.

    Args:
        nodes: Ray's ids of them.
        function: of tlray, which is imported there.
        arguments: of it.

    Returns:
        What each returned, by the node's id; NOBODY of those that did not answer, which is said.
    """
    return _answers(call, nodes, ray.exceptions.RayError, function, *arguments)


def ask_each(nodes: Sequence[str], question: Callable[[], Any]) -> dict[str, Any]:
    """Have every one of some nodes answer a question, and wait for them.

    Args:
        nodes: Ray's ids of them.
        question: a function within a function, which Ray sends whole: tlray need not be there.

    Returns:
        As `on_each`, NOBODY only of those that have gone.

    Raises:
        RayError: the question itself failed.
    """
    return _answers(ray.remote(num_cpus=0)(question), nodes, _GONE)


def _answers(task: Any, nodes: Sequence[str], gone: Any, *arguments: Any) -> dict[str, Any]:
    answers = dict[str, Any].fromkeys(nodes, NOBODY)
    asked = {
        node: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*arguments)
        for node in nodes
    }
    done = set(ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_SECONDS)[0]) if asked else set()
    for node, reference in asked.items():
        if reference not in done:
            say(f"node {node} did not answer within {readable_seconds(ANSWER_SECONDS)}, so it is taken for gone")
            continue
        try:
            answers[node] = ray.get(reference)
        except gone as error:  # or it lacks what a function needs
            say(f"node {node} could not be asked: {last_line(error)}")
    return answers
