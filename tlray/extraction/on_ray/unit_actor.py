"""The actors of extraction on Ray where there are no GPUs: each works on whole units, with a lane for each of its cores.

Decoding and encoding compete for the same cores there, so nothing is won by doing them in different processes, and the pixels
need not cross the object store at all.
"""

import threading
from collections.abc import Iterator

import pyarrow as pa

from tlray.config.commands.extraction import Engine
from tlray.extraction.on_ray.encoder_actor import on_this_node
from tlray.extraction.on_ray.needs import Needs, require
from tlray.extraction.on_ray.tasks import piece_rows, unit_of
from tlray.extraction.worker.unit_worker import UnitWorker
from tlray.lake.source.read_spec import ReadSpec
from tlray.lake.storage.local_copy import local_copy
from tlray.lake.table.table import Table
from tlray.machine.garbage import without_collecting
from tlray.machine.threads import yield_cores
from tlray.machine.timers import is_past
from tlray.models.encoder.memory import keep_freed_memory


class UnitActor:
    """Takes units from their listing to written parts; several threads call it.

    It loads the network by itself, so a restarted actor needs nothing from the object store.
    """

    def __init__(
        self,
        table_uri: str,
        weights: str,
        spec_json: str,
        run_id: str,
        lanes: int,
        closes: float | None = None,
        computed_by: Engine = "torch",
        images: int = 0,
        needs: Needs | None = None,
    ) -> None:
        yield_cores()
        keep_freed_memory()
        self._table_uri, self._weights = table_uri, weights
        self._spec = ReadSpec.model_validate_json(spec_json)
        self._run_id = run_id
        self._lanes = lanes
        self._closes = closes
        self._computed_by: Engine = computed_by
        self._images, self._needs = images, needs
        self._lock = threading.Lock()
        self._worker: UnitWorker | None = None

    def _ready(self) -> UnitWorker:
        # Not in __init__: an error there would reach the driver as the death of an actor, not as itself.
        with self._lock:
            if self._worker is None:
                # Not above, as the driver imports this module to name the actor, before it starts Ray: torch takes seconds.
                with without_collecting():
                    from tlray.extraction.worker.scoring_encoder import with_head
                    from tlray.models.encoder.golden import make_encoder

                require(self._needs)
                recipe_file = Table.open(self._table_uri).recipe_file.with_weights(self._weights)
                where = on_this_node()
                encoder = make_encoder(
                    recipe_file, local_copy, where=where, lanes=self._lanes, engine=self._computed_by, images=self._images
                )
                scoring = with_head(encoder, recipe_file, self._table_uri)
                self._worker = UnitWorker(scoring, encoder, self._spec, self._table_uri, recipe_file, self._run_id)
            return self._worker

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Work on units; a row for each written piece. When it is time to close, none is begun."""
        if is_past(self._closes):
            return
        worker = self._ready()
        for row in batch.to_pylist():
            yield piece_rows(worker.work(unit_of(row)))
