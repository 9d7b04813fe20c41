"""A piece: some images of a unit on their way into the table. Only its content changes: what the images have become.

    Piece[DecodedImages] -> encode_piece -> Piece[EncodedRows] -> write_piece -> Piece[WrittenParts] -> Committer

Neither torch nor Ray is imported here, so that the processes that only write start quickly.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter, thread_time
from typing import Generic, TypeVar

import pyarrow as pa

from tlray.lake.source.read_images import NOTES
from tlray.lake.table.parts import Part, write_part

UNIT_STEM_DIGITS = 7

Content = TypeVar("Content", covariant=True)
Next = TypeVar("Next")


@dataclass(frozen=True)
class EncodedRows:
    """Rows in the table's own columns, in memory.

    Attributes:
        ok: rows with vectors.
        failed: rows with an error and null vectors.
    """

    ok: pa.Table
    failed: pa.Table

    def __len__(self) -> int:
        return len(self.ok) + len(self.failed)


@dataclass(frozen=True)
class WrittenParts:
    """Files beside the table's log, which nobody sees until they are committed.

    Attributes:
        parts: the files, at most one of each status.
        failures: failed rows by error code.
    """

    parts: tuple[Part, ...]
    failures: dict[str, int]

    @property
    def images(self) -> int:
        """How many images are in the files, failed ones included."""
        return sum(part.rows for part in self.parts)


@dataclass(frozen=True)
class Piece(Generic[Content]):
    """Consecutive images of one unit.

    Attributes:
        unit: index of the unit in its plan.
        index: number of the piece within the unit, from 0.
        is_last: whether the unit has no more.
        content: DecodedImages, EncodedRows or WrittenParts.
        seconds: spent so far, by stage: in `fetch`, `transfer` and `upload` a worker waited; in `decode`, `encode` and `write`
            it kept a processor or GPU busy.
        notes: what went wrong with the first few failed images, for people.
    """

    unit: int
    index: int
    is_last: bool
    content: Content
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()

    def with_content(self, content: Next, **seconds: float) -> "Piece[Next]":
        """The same images as something else, and what that took."""
        return Piece(self.unit, self.index, self.is_last, content, {**self.seconds, **seconds}, self.notes)


def join_pieces(pieces: Sequence[Piece[EncodedRows]], *, index: int, is_last: bool) -> Piece[EncodedRows]:
    """Consecutive pieces of a unit as one.

    Args:
        pieces: at least one.
        index: of the joined piece.
        is_last: likewise.
    """
    seconds: Counter[str] = Counter()
    for piece in pieces:
        seconds.update(piece.seconds)
    rows = EncodedRows(
        ok=pa.concat_tables(piece.content.ok for piece in pieces).combine_chunks(),
        failed=pa.concat_tables(piece.content.failed for piece in pieces).combine_chunks(),
    )
    notes = tuple(note for piece in pieces for note in piece.notes)[:NOTES]
    return Piece(pieces[0].unit, index, is_last, rows, dict(seconds), notes)


def write_piece(piece: Piece[EncodedRows], *, table_uri: str, recipe_id: str, run_id: str) -> Piece[WrittenParts]:
    """Write the rows of a piece as parts of the table, not yet committed.

    Args:
        piece: encoded.
        table_uri: the table.
        recipe_id: the table's (`RecipeFile.table_id`).
        run_id: begins the files' names, for people who look at the folder.
    """
    began, cpu_began = perf_counter(), thread_time()
    stem = f"{run_id}-{piece.unit:0{UNIT_STEM_DIGITS}d}-{piece.index:03d}"
    rows = piece.content
    parts = tuple(
        write_part(table_uri, some, status=status, stem=stem, recipe_id=recipe_id)
        for status, some in (("ok", rows.ok), ("failed", rows.failed))
        if len(some)
    )
    write_seconds = thread_time() - cpu_began
    upload_seconds = max(0.0, perf_counter() - began - write_seconds)
    failures = dict(Counter(rows.failed["error"].to_pylist()))
    return piece.with_content(WrittenParts(parts, failures), write=write_seconds, upload=upload_seconds)
