"""The actors that embed on GPUs, where decoding and writing are tasks of their own."""

from collections.abc import Iterator
from importlib.metadata import version
from time import perf_counter

import pyarrow as pa
import ray

from tlray.extraction.on_ray.needs import Needs, require
from tlray.extraction.on_ray.tasks import decoded_piece, piece_rows
from tlray.extraction.worker.pieces import TimedEncoder, encode_piece
from tlray.lake.storage.local_copy import local_copy
from tlray.lake.table.table import Table
from tlray.recipe import TextRecipe


def on_this_node() -> str:
    """The node that this process runs on, as error messages name it."""
    return f"the encoder on node {ray.get_runtime_context().get_node_id()[:12]} (torch {version('torch')})"


class EncoderActor:
    """Embeds decoded pieces; it loads the network by itself, so a restarted actor needs nothing from the object store."""

    def __init__(self, table_uri: str, weights: str, images: int, needs: Needs | None = None) -> None:
        self._table_uri, self._weights = table_uri, weights
        self._images, self._needs = images, needs
        self._ready = False

    def _prepare(self) -> None:
        # Not in __init__: an error there would reach the driver as the death of an actor, not as itself. Nor above, as the
        # driver imports this module to name the actor, before it starts Ray: torch takes seconds.
        from tlray.extraction.worker.scoring_encoder import with_head
        from tlray.extraction.worker.tuning_encoder import TuningEncoder
        from tlray.models.encoder.golden import make_encoder

        require(self._needs)
        self._recipe_file = Table.open(self._table_uri).recipe_file.with_weights(self._weights)
        where = on_this_node()
        encoder: TimedEncoder
        if isinstance(self._recipe_file.recipe, TextRecipe):
            encoder = make_encoder(self._recipe_file, local_copy, where=where)
        else:
            encoder = TuningEncoder(self._recipe_file, where=where, images=self._images)
        self._encoder = with_head(encoder, self._recipe_file, self._table_uri)
        self._ready = True

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Embed the pieces of a batch; yields a row for each, its content EncodedRows."""
        if not self._ready:
            self._prepare()
        for index in range(len(batch)):
            began = perf_counter()
            piece = decoded_piece(batch.slice(index, 1))
            piece.seconds["transfer"] = perf_counter() - began
            yield piece_rows([encode_piece(self._encoder, piece, self._recipe_file)])
