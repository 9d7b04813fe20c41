"""A piece: some images of a unit on their way into the table. Only its content changes: what the images have become.

    Piece[DecodedImages] -> encode_piece -> Piece[EncodedRows] -> write_piece -> Piece[WrittenParts] -> Committer

Neither torch nor Ray is imported here, so that the processes that only write start quickly. Shape legend: B images of a piece,
D embedding length, H height, W width, C channels.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter, thread_time
from typing import Generic, Protocol, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.errors import ImageErrorCode
from tlray.extraction.worker.prediction_columns import prediction_columns
from tlray.lake.source.read_images import NOTES, DecodedImages
from tlray.lake.table.parts import Part, vector_column, write_part
from tlray.lake.table.schema import ERROR_FIELD, FIXED_FIELDS, own_fields
from tlray.recipe import RecipeFile, TextRecipe
from tlray.recipe.texts import UNKNOWN_FRACTION

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
        failures: failed images by error code.
        without_images: tar and Parquet files that were read and hold no image, each of which has a row that says so.
        unlabelled: embedded images without a label.
    """

    parts: tuple[Part, ...]
    failures: dict[str, int]
    without_images: tuple[str, ...] = ()
    unlabelled: int = 0

    @property
    def images(self) -> int:
        """How many images are in the files, failed ones included."""
        return sum(part.rows for part in self.parts) - len(self.without_images)


@dataclass(frozen=True)
class Piece(Generic[Content]):
    """Consecutive images of one unit, and what they have become so far.

    Attributes:
        unit: index of the unit in its plan.
        index: number of the piece within the unit, from 0.
        is_last: whether the unit has no more.
        content: DecodedImages, EncodedRows or WrittenParts.
        seconds: spent so far, by stage: in `fetch`, `transfer` and `upload` a worker waited; in `decode`, `encode` and `write`
            it kept a processor or GPU busy.
        notes: what went wrong with the first few failed images, for people.
        unfit: by column that travels, how many values were not of its type; they are null.
        computed_by: the engine that embedded it, where there is a choice: torch, openvino or onnxruntime; with its number
            format where that is not the recipe's.
        trial: what a trial on the worker's machine found, where one chose the engine.
    """

    unit: int
    index: int
    is_last: bool
    content: Content
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()
    unfit: dict[str, int] = field(default_factory=dict)
    computed_by: str = ""
    trial: str = ""

    def with_content(self, content: Next, **seconds: float) -> "Piece[Next]":
        """The same images as something else, and what that took."""
        return replace(cast("Piece[Next]", self), content=content, seconds={**self.seconds, **seconds})


class TimedEncoder(Protocol):
    """An encoder as pieces need it; `tlray.models.encoder.golden.AnyEncoder` names those that there are."""

    def encode_timed(self, inputs: np.ndarray, /) -> tuple[dict[str, np.ndarray], float]:
        """Embed images or texts, and tell how long that took.

        Args:
            inputs: images_BHWC, uint8, or texts_B, objects.

        Returns:
            features_BD, float32, by column; and the seconds that a processor or GPU was busy.
        """
        ...


def encode_piece(encoder: TimedEncoder, piece: Piece[DecodedImages], file: RecipeFile) -> Piece[EncodedRows]:
    """Embed the images or texts of a piece, and make the table's own columns of the vectors.

    A row whose vector is not finite becomes a failed one, and so does a text without a known word.

    Args:
        encoder: of the table (`tlray.extraction.worker.scoring_encoder.with_head`).
        piece: decoded.
        file: the table's.
    """
    images = piece.content
    features, encode_seconds = encoder.encode_timed(images.inputs)
    finite_B = np.ones(len(images.inputs), bool)
    for features_BD in features.values():
        finite_B &= np.isfinite(features_BD).all(axis=1)
    decoded = pc.is_null(images.rows["error"])
    ok = images.rows.filter(decoded).filter(pa.array(finite_B))
    not_finite = images.rows.filter(decoded).filter(pa.array(~finite_B))
    code = _why_not(features, ~finite_B)
    failed = pa.concat_tables(
        [images.rows.filter(pc.invert(decoded)), not_finite.set_column(len(FIXED_FIELDS), ERROR_FIELD, code)]
    )
    columns = _own_columns({name: features_BD[finite_B] for name, features_BD in features.items()}, file)
    if isinstance(file.recipe, TextRecipe):
        columns = {"text": pa.array(images.inputs[finite_B], pa.string()), **columns}
    nulls = {field.name: pa.nulls(len(failed), field.type) for field in own_fields(file)}
    rows = EncodedRows(_with_columns(ok, columns), _with_columns(failed, nulls))
    return piece.with_content(rows, encode=encode_seconds)


def _own_columns(features: dict[str, np.ndarray], file: RecipeFile) -> dict[str, pa.Array]:
    """The columns of `own_fields`, of rows whose numbers are finite."""
    output, storage = file.output, file.recipe.precision.storage
    predictions = prediction_columns(features[output.scores], output) if output else {}
    measures = {name: pa.array(features[name][:, 0], pa.float32()) for name in file.recipe.measures}
    return measures | predictions | {column: vector_column(features[column], storage) for column in file.embedding_columns}


def _why_not(features: dict[str, np.ndarray], failed_B: np.ndarray) -> pa.Array:
    """Why there is no vector that could be stored, of those that have none."""
    codes = np.full(int(failed_B.sum()), str(ImageErrorCode.NON_FINITE), object)
    if UNKNOWN_FRACTION in features:
        codes[features[UNKNOWN_FRACTION][failed_B, 0] == 1] = str(ImageErrorCode.UNKNOWN_WORDS)
    return pa.array(codes, pa.string())


def _with_columns(rows: pa.Table, columns: dict[str, pa.Array]) -> pa.Table:
    for offset, (name, column) in enumerate(columns.items()):
        rows = rows.add_column(len(FIXED_FIELDS) + offset, name, column)
    return rows


def join_pieces(pieces: Sequence[Piece[EncodedRows]], *, index: int, is_last: bool) -> Piece[EncodedRows]:
    """Join consecutive pieces of a unit into one.

    Args:
        pieces: at least one.
        index: of the joined piece.
        is_last: whether the unit has no more.
    """
    seconds: Counter[str] = Counter()
    unfit: Counter[str] = Counter()
    for piece in pieces:
        seconds.update(piece.seconds)
        unfit.update(piece.unfit)
    rows = EncodedRows(
        ok=pa.concat_tables(piece.content.ok for piece in pieces).combine_chunks(),
        failed=pa.concat_tables(piece.content.failed for piece in pieces).combine_chunks(),
    )
    notes = tuple(note for piece in pieces for note in piece.notes)[:NOTES]
    first = pieces[0]
    return Piece(first.unit, index, is_last, rows, dict(seconds), notes, dict(unfit), first.computed_by, first.trial)


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
    return piece.with_content(_described(parts, rows), write=write_seconds, upload=upload_seconds)


def _described(parts: tuple[Part, ...], rows: EncodedRows) -> WrittenParts:
    is_empty = pc.equal(rows.failed["error"], ImageErrorCode.NO_IMAGES)
    failures = Counter(rows.failed["error"].filter(pc.invert(is_empty)).to_pylist())
    without_images = rows.failed["uri"].filter(is_empty).to_pylist()
    return WrittenParts(parts, dict(failures), tuple(without_images), rows.ok["label"].null_count)
