"""Small work of a run beside its units, such as joining parts: by the nodes in turn, whatever else they do."""

import itertools
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tlray.extraction.on_ray.cluster import Cluster
from tlray.extraction.on_ray.needs import Needs, require
from tlray.lake.table.rewrite import Submit
from tlray.ray_cluster.errors import own_error
from tlray.ray_cluster.nodes import call


def submit_to(cluster: Cluster) -> Submit:
    """What has the nodes of a cluster call functions.

    The calls go to the nodes that work, as Ray would otherwise put some of them on a head that must not, and elsewhere when
    theirs is gone.

    Args:
        cluster: that was joined.
    """
    turns = itertools.count()

    def submit(function: Callable[..., Any], /, *arguments: Any, **options: Any) -> "Future[Any]":
        ids = cluster.nodes.ids
        strategy = NodeAffinitySchedulingStrategy(ids[next(turns) % len(ids)], soft=True)
        reference = call.options(scheduling_strategy=strategy).remote(
            _by_worker, cluster.needs, function, *arguments, **options
        )
        return _with_own_errors(reference.future())

    return submit


def _by_worker(needs: Needs | None, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    require(needs)
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
