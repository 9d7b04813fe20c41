"""A unit of the plan, from its listing to written parts, in one thread; several threads share an encoder.

A thread takes turns with the others on the cores. In a turn it decodes a few images and embeds them, so that their pixels are
still in the core's caches, and no more threads compute than there are cores, however many wait for the store.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from time import perf_counter
from typing import Protocol

from tlray.extraction.plan.plan import Unit
from tlray.extraction.worker.encode import TimedEncoder, encode_piece
from tlray.extraction.worker.fetch import FetchSpec, decode_members, fetch_members
from tlray.extraction.worker.pieces import EncodedPiece, WrittenPiece, merged, write_piece
from tlray.lake.source.shards import Member
from tlray.recipe import RecipeFile

THREADS_AHEAD = 1
"""Threads more than lanes, so that one fetches or writes while the others keep all cores busy. More of them win nothing: two
lanes on two cores made 321 and 324 images a second with 1, 320 and 319 with 2, 320 with 4 (photos in memory)."""


class Cores(Protocol):
    """Turns on the cores: those of `tlray.models.encoder.encoder.Encoder`."""

    def turn(self) -> AbstractContextManager[None]: ...  # noqa: D102

    @property
    def turn_images(self) -> int | None: ...  # noqa: D102


@dataclass(frozen=True)
class UnitWorker:
    """All that working on a unit takes.

    Attributes:
        encoder: with one lane a core, and the table's head.
        cores: of the encoder's lanes.
        spec: how to fetch and decode.
        table_uri: where parts go.
        recipe_file: of the table.
        run_id: of this run.
        stopped: asked between images; once it says so, units are dropped.
    """

    encoder: TimedEncoder
    cores: Cores
    spec: FetchSpec
    table_uri: str
    recipe_file: RecipeFile
    run_id: str
    stopped: Callable[[], bool] = lambda: False

    def work(self, unit: Unit) -> list[WrittenPiece]:
        """Fetch, decode, embed and write the images of a unit.

        Raises:
            StoppedError: `stopped` said so.
            TlrayError: what ends the run.
        """
        written: list[WrittenPiece] = []
        done: list[EncodedPiece] = []
        for members, fetch_seconds in self._fetched(unit):
            if done and sum(piece.rows for piece in done) + len(members) > self.spec.piece_images:
                written.append(self._write(done, len(written), last=False))
                done = []
            with self.cores.turn():
                # No more than a piece can hold, so it is one.
                (piece,) = decode_members(members, unit.index, self.spec, len(members))
                piece.seconds["fetch"] = fetch_seconds
                done.append(encode_piece(self.encoder, piece, self.recipe_file))
        written.append(self._write(done, len(written), last=True))
        return written

    def _fetched(self, unit: Unit) -> Iterator[tuple[list[Member], float]]:
        """The images of each turn, and how long they were waited for; none in one turn if the unit has none."""
        upcoming = fetch_members(unit.items, self.spec, self.stopped)
        at_once = min(self.cores.turn_images or self.spec.piece_images, self.spec.piece_images)
        is_first = True
        while True:
            began = perf_counter()
            members = list(islice(upcoming, at_once))
            if not members and not is_first:
                return
            yield members, perf_counter() - began
            is_first = False

    def _write(self, done: list[EncodedPiece], index: int, *, last: bool) -> WrittenPiece:
        piece = replace(merged(done), index=index, last=last)
        return write_piece(piece, table_uri=self.table_uri, recipe_id=self.recipe_file.table_id, run_id=self.run_id)
