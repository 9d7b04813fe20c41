"""Extraction in one process, without Ray: threads fetch, decode and write while the main thread encodes."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from tlray.extract.encoding import encode_piece
from tlray.extract.pieces import WrittenPiece, write_piece
from tlray.lake.fetch import FetchSpec, Piece, fetch_unit
from tlray.lake.plan import Plan, Unit
from tlray.models.encoder import Encoder
from tlray.recipe import RecipeFile

PIECES_AHEAD = 2
"""Decoded or encoded pieces that wait for the next stage; each is at most 64 MiB."""


def run_locally(
    plan: Plan, spec: FetchSpec, encoder: Encoder, table_uri: str, recipe_file: RecipeFile, run_id: str
) -> Iterator[WrittenPiece]:
    """Work a plan off.

    Yields:
        Written pieces as they are finished, in no particular order.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
        writing: list[Future[WrittenPiece]] = []
        for piece in _decoded(plan.units, spec):
            encoded = encode_piece(encoder, piece, recipe_file.recipe)
            writing.append(
                writer.submit(write_piece, encoded, table_uri=table_uri, recipe_id=recipe_file.recipe_id, run_id=run_id)
            )
            while writing and (writing[0].done() or len(writing) > PIECES_AHEAD):
                yield writing.pop(0).result()
        for future in writing:
            yield future.result()


def _decoded(units: Sequence[Unit], spec: FetchSpec) -> Iterator[Piece]:
    """Pieces of all units, one thread a core (Pillow releases the interpreter's lock), a few pieces ahead of the caller."""
    generators = (fetch_unit(unit, spec) for unit in units)
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores, thread_name_prefix="decode") as threads:

        def advance(generator: Iterator[Piece]) -> Future[Piece | None]:
            return threads.submit(next, generator, None)

        running = {advance(generator): generator for generator in islice(generators, cores + PIECES_AHEAD)}
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                generator = running.pop(future)
                piece = future.result()
                following = generator if piece is not None else next(generators, None)
                if following is not None:
                    running[advance(following)] = following
                if piece is not None:
                    yield piece
