"""A unit of the plan, from its listing to written parts, in one thread; several threads share an encoder."""

from collections.abc import Callable
from dataclasses import dataclass

from tlray.extract.encoding import TimedEncoder, encode_piece
from tlray.extract.pieces import WrittenPiece, write_piece
from tlray.lake.fetch import Core, FetchSpec, fetch_unit
from tlray.lake.plan import Unit
from tlray.recipe import RecipeFile

THREADS_AHEAD = 1
"""Threads more than lanes, so that one fetches while the others keep all cores busy. More of them win nothing: two lanes on two
cores made 321 and 324 images a second with 1, 320 and 319 with 2, 320 with 4 (tf_efficientnet_lite0, photos of 500 x 375
pixels in memory; 308 and 317 where threads decoded beside busy lanes and not in turn with them). A thread holds one piece, at
most 64 MiB."""


@dataclass(frozen=True)
class UnitWorker:
    """All that working on a unit takes.

    Attributes:
        encoder: with one lane a core, and the table's head.
        spec: how to fetch and decode.
        table_uri: where parts go.
        recipe_file: of the table.
        run_id: of this run.
        core: entered to decode; the encoder's own, so that no more threads compute than there are cores.
        stopped: asked between images; once it says so, units are dropped.
    """

    encoder: TimedEncoder
    spec: FetchSpec
    table_uri: str
    recipe_file: RecipeFile
    run_id: str
    core: Core
    stopped: Callable[[], bool] = lambda: False

    def work(self, unit: Unit) -> list[WrittenPiece]:
        """Fetch, decode, embed and write the images of a unit.

        Raises:
            StoppedError: `stopped` said so.
            TlrayError: what ends the run.
        """
        return [
            write_piece(
                encode_piece(self.encoder, piece, self.recipe_file),
                table_uri=self.table_uri,
                recipe_id=self.recipe_file.table_id,
                run_id=self.run_id,
            )
            for piece in fetch_unit(unit, self.spec, self.stopped, self.core)
        ]
