"""Small work of a run beside its units, such as joining parts: by the nodes in turn, whatever else they do."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tlray.lake.table.rewrite import Submit
from tlray.progress import readable_seconds, say
from tlray.ray_cluster.errors import last_line, own_error

ANSWER_SECONDS = 60.0
"""A node that starts a process for the question takes some seconds; one that has gone never answers."""

NOBODY: Final = "nobody"


def submit_to(nodes: Sequence[str]) -> Submit:
    """What has the nodes of a cluster call functions.

    The calls claim no core, as the actors and tasks of the run claim all of them for hours; they go to the nodes that work, as
    Ray would otherwise put some of them on a head that must not, and elsewhere when theirs is gone.

    Args:
        nodes: Ray's ids of those that work.
    """
    in_turn = itertools.cycle(nodes)

    def submit(function: Callable[..., Any], /, *arguments: Any, **options: Any) -> "Future[Any]":
        strategy = NodeAffinitySchedulingStrategy(next(in_turn), soft=True)
        call = _call.options(scheduling_strategy=strategy).remote(function, *arguments, **options)
        return _with_own_errors(call.future())

    return submit


@ray.remote(num_cpus=0)
def _call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return function(*arguments, **options)


def _with_own_errors(raw: "Future[Any]") -> "Future[Any]":
    """The same future, with our error in place of Ray's."""
    own: Future[Any] = Future()

    def take(ended: "Future[Any]") -> None:
        error = ended.exception()
        if error is None:
            own.set_result(ended.result())
        else:
            own.set_exception(own_error(error))

    raw.add_done_callback(take)
    return own


def on_each(nodes: Sequence[str], function: Callable[..., Any], /, *arguments: Any) -> dict[str, Any]:
    """Have every one of some nodes call a function, and wait for them.

    Returns:
        What each returned, by the node's id; NOBODY of those that did not answer, which is said.
    """
    calls = {
        node: _call.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(function, *arguments)
        for node in nodes
    }
    done, _ = ray.wait(list(calls.values()), num_returns=len(calls), timeout=ANSWER_SECONDS)
    answered, answers = set(done), dict[str, Any].fromkeys(nodes, NOBODY)
    for node, call in calls.items():
        if call not in answered:
            say(f"node {node} did not answer within {readable_seconds(ANSWER_SECONDS)}, so it is taken for gone")
            continue
        try:
            answers[node] = ray.get(call)
        except ray.exceptions.RayError as error:  # it has gone, or lacks what the function needs
            say(f"node {node} could not be asked: {last_line(error)}")
    return answers
