"""A map of a collection: rows in two dimensions, near ones near each other as far as two dimensions allow.

It is drawn at once by principal components. Where the package umap-learn is installed (extra `map`), a process of its own then
computes a layout that keeps neighbours together; when it is ready, it takes the place of the first one.

Shape legend: N rows, D dimensions.
"""

import asyncio
import sys
from asyncio.subprocess import PIPE
from importlib.util import find_spec

import numpy as np
import pyarrow as pa

from tlray.progress import say
from tlray.search.query.searcher import Searcher
from tlray.search.service.backend.map import layout
from tlray.search.service.backend.schema import Map, Point
from tlray.search.service.backend.workers import Workers

MAP_ROWS = 3000
"""Points that a browser draws and a person can tell apart; evenly spread over the rows."""

UMAP_LEAST_ROWS = 200
"""UMAP looks at 15 neighbours of each row; fewer rows than some times that are taken in at a glance in any layout."""


class CollectionMap:
    """The map of one version of an index, drawn when somebody first asks for it.

    Args:
        searcher: the version.
        workers: whose threads draw the first layout.
    """

    def __init__(self, searcher: Searcher, workers: Workers) -> None:
        self.searcher = searcher
        self._workers = workers
        self._first: asyncio.Task[None] | None = None
        self._better: asyncio.Task[None] | None = None
        self._map: Map | None = None

    async def get(self) -> Map:
        """The best layout there is by now; the first who ask wait for the first one.

        Raises:
            ServiceBusyError: it is not drawn yet, and too many requests are at work.
            TlrayError: the rows' vectors cannot be read.
        """
        if self._map is None:
            if self._first is None or self._first.done():
                self._first = asyncio.create_task(self._draw())
            await asyncio.shield(self._first)  # goes on should this request not wait for it
        assert self._map is not None
        return self._map

    async def close(self) -> None:
        """Give up what is being drawn."""
        tasks = [task for task in (self._first, self._better) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _draw(self) -> None:
        improves = find_spec("umap") is not None
        vectors_ND, first = await self._workers.run(lambda: _first_map(self.searcher, improves))
        self._map = first
        if first.improving:
            self._better = asyncio.create_task(self._improve(vectors_ND, first))

    async def _improve(self, vectors_ND: np.ndarray, first: Map) -> None:
        try:
            places_N2 = await umap_in_process(vectors_ND)
        except (OSError, ValueError) as error:
            say(f"the map stays as its principal components: {error}")
            self._map = first.model_copy(update={"improving": False})
            return
        points = [point.model_copy(update=_place(at)) for point, at in zip(first.points, places_N2, strict=True)]
        self._map = Map(layout="UMAP", improving=False, points=points)


def _first_map(searcher: Searcher, improves: bool) -> tuple[np.ndarray, Map]:
    rows = searcher.rows
    at_N = np.unique(np.linspace(0, len(rows) - 1, min(MAP_ROWS, len(rows))).astype(np.int64))
    vectors_ND = searcher.vectors(at_N)
    labels = rows.table["label"].take(pa.array(at_N)).to_pylist()
    places_N2 = layout.scaled(layout.principal_components(vectors_ND, 2))
    points = [
        Point(id=int(row_id), label=label, **_place(at_2))
        for row_id, label, at_2 in zip(rows.ids_N[at_N], labels, places_N2, strict=True)
    ]
    return vectors_ND, Map(layout="principal components", improving=improves and len(at_N) >= UMAP_LEAST_ROWS, points=points)


def _place(at_2: np.ndarray) -> dict[str, float]:
    return {"x": round(float(at_2[0]), 4), "y": round(float(at_2[1]), 4)}


async def umap_in_process(vectors_ND: np.ndarray) -> np.ndarray:
    """Run `layout.umap_places` in a process that ends with the request for it: it compiles code for many seconds.

    Raises:
        ValueError: it failed; the message is the last that it said.
        OSError: it cannot be started.
    """
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", layout.__name__, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    try:
        answer, complaints = await process.communicate(layout.to_npy(vectors_ND))
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        last = (complaints.decode(errors="replace").strip().splitlines() or [f"UMAP ended with {process.returncode}"])[-1]
        raise ValueError(last)
    return layout.from_npy(answer)
