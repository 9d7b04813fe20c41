"""Small work of a run beside its units, such as joining parts: by the nodes in turn, whatever else they do."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tlray.lake.table.rewrite import Submit
from tlray.ray_cluster.errors import own_error
from tlray.ray_cluster.nodes import call


def submit_to(nodes: Sequence[str]) -> Submit:
    """What has the nodes of a cluster call functions.

    The calls go to the nodes that work, as Ray would otherwise put some of them on a head that must not, and elsewhere when
    theirs is gone.

    Args:
        nodes: Ray's ids of those that work.
    """
    in_turn = itertools.cycle(nodes)

    def submit(function: Callable[..., Any], /, *arguments: Any, **options: Any) -> "Future[Any]":
        strategy = NodeAffinitySchedulingStrategy(next(in_turn), soft=True)
        reference = call.options(scheduling_strategy=strategy).remote(function, *arguments, **options)
        return _with_own_errors(reference.future())

    return submit


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
