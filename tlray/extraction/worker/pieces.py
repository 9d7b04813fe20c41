"""What becomes of a piece after it is decoded: encoded, then written. Neither torch nor Ray here: write tasks start quickly."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter, thread_time

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from tlray.extraction.worker.fetch import NOTES
from tlray.lake.table.parts import Part, write_part

UNIT_STEM_DIGITS = 7


@dataclass(frozen=True)
class EncodedPiece:
    """A piece whose images have become vectors.

    Attributes:
        unit, index, last, notes: as in `Piece`.
        ok: rows with vectors, in the table's columns.
        failed: rows with an error and null vectors, in the same columns.
        seconds: busy time by stage.
    """

    unit: int
    index: int
    last: bool
    ok: pa.Table
    failed: pa.Table
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Of both kinds."""
        return len(self.ok) + len(self.failed)


def merged(pieces: Sequence[EncodedPiece]) -> EncodedPiece:
    """Consecutive pieces of a unit as one, with the last one's number; at least one."""
    seconds: Counter[str] = Counter()
    for piece in pieces:
        seconds.update(piece.seconds)
    return replace(
        pieces[-1],
        ok=pa.concat_tables(piece.ok for piece in pieces).combine_chunks(),
        failed=pa.concat_tables(piece.failed for piece in pieces).combine_chunks(),
        seconds=dict(seconds),
        notes=tuple(note for piece in pieces for note in piece.notes)[:NOTES],
    )


class WrittenPiece(BaseModel):
    """A piece whose rows are in files that nobody sees yet.

    Attributes:
        unit, index, last, notes: as in `Piece`.
        parts: the files, at most one of each status.
        failures: rows by error code.
        seconds: by stage, see `tlray.extraction.worker.fetch.Piece`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: int
    index: int
    last: bool
    parts: tuple[Part, ...]
    failures: dict[str, int]
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()


def write_piece(piece: EncodedPiece, *, table_uri: str, recipe_id: str, run_id: str) -> WrittenPiece:
    """Write the rows of a piece as parts of the table, not yet committed."""
    began, cpu_began = perf_counter(), thread_time()
    stem = f"{run_id}-{piece.unit:0{UNIT_STEM_DIGITS}d}-{piece.index:03d}"
    parts = tuple(
        write_part(table_uri, rows, status=status, stem=stem, recipe_id=recipe_id)
        for status, rows in (("ok", piece.ok), ("failed", piece.failed))
        if len(rows)
    )
    write_seconds = thread_time() - cpu_began
    return WrittenPiece(
        unit=piece.unit,
        index=piece.index,
        last=piece.last,
        parts=parts,
        failures=dict(Counter(piece.failed["error"].to_pylist())),
        seconds={**piece.seconds, "write": write_seconds, "upload": max(0.0, perf_counter() - began - write_seconds)},
        notes=piece.notes,
    )
