"""A table of queries answered by many processes on Ray, each with the whole index in its memory."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.util import ActorPool

from tlray.ray_cluster.errors import unwrapped
from tlray.ray_cluster.session import joined
from tlray.ray_cluster.waiting import said_while_waiting
from tlray.search.query.answers import answer_part
from tlray.search.query.searcher import Searcher
from tlray.search.rows.selection import Filter


class _Answerer:
    """An actor: a searcher of one version."""

    def __init__(self, index: str, version: int) -> None:
        self._searcher = Searcher.open(index, version)

    def answer(self, table_uri: str, path: str, k: int, where: Filter, columns: Sequence[str]) -> pa.Table:
        """Answers to the rows of a part."""
        return answer_part(self._searcher, table_uri, path, k, where, columns)


def answers_on_ray(
    index: str,
    version: int,
    table_uri: str,
    paths: Sequence[str],
    k: int,
    where: Filter,
    columns: Sequence[str],
    workers: int,
) -> Iterator[pa.Table]:
    """Answer parts of a table of queries, each with the whole index in the memory of every worker.

    Args:
        index: URI or path, which every worker must reach.
        version: of the index.
        table_uri: the queries' table.
        paths: of its parts.
        k: answers to each query.
        where: which rows may be found.
        columns: whose values are shown.
        workers: processes.

    Yields:
        Each part's answers, in order.

    Raises:
        ConfigError: there is no cluster.
        TlrayError: what a worker raised.
    """
    with joined(), unwrapped():
        actor: Any = ray.remote(_Answerer)
        pool: Any = ActorPool([actor.remote(index, version) for _ in range(min(workers, max(1, len(paths))))])
        # Ahead of what is read by a few parts only, so that answers do not pile up.
        waiting = iter(paths)

        def submit(count: int) -> None:
            for path in itertools.islice(waiting, count):
                pool.submit(lambda each, one: each.answer.remote(table_uri, one, k, where, columns), path)

        def in_order() -> Iterator[pa.Table]:
            submit(2 * workers)
            while pool.has_next():
                yield pool.get_next()
                submit(1)

        yield from said_while_waiting(in_order())
