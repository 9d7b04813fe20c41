"""The stages of extraction after decoding, as plain functions of plain values: no Ray here.

Shape legend: B images of a piece, D embedding length.
"""

from collections import Counter
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from tlray.errors import ImageErrorCode
from tlray.lake.fetch import Piece
from tlray.lake.local_copy import local_copy
from tlray.lake.parts import ERROR_FIELD, FIXED_FIELDS, Part, vector_column, write_part
from tlray.models.backbones import Backbone, load_backbone
from tlray.models.encoder import Encoder
from tlray.recipe import Recipe, RecipeFile, check_golden, golden_images

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


class WrittenPiece(BaseModel):
    """A piece whose rows are in files that nobody sees yet.

    Attributes:
        unit, index, last, notes: as in `Piece`.
        parts: the files, at most one of each status.
        failures: rows by error code.
        seconds: busy time by stage.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: int
    index: int
    last: bool
    parts: tuple[Part, ...]
    failures: dict[str, int]
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()


def make_encoder(expected: RecipeFile, *, where: str, backbone: Backbone | None = None) -> Encoder:
    """An encoder that has shown that it computes the table's numbers.

    Args:
        expected: the table's recipe file.
        where: for the message, should it not.
        backbone: already loaded; default loads it by the recipe.

    Raises:
        GoldenMismatchError: it computes others.
        WeightsError: the weights changed or are gone.
    """
    encoder = Encoder(backbone or load_backbone(expected.recipe, local_copy))
    check_golden(expected, encoder.encode(golden_images(*expected.recipe.preprocessing.crop)), where=where)
    return encoder


def encode_piece(encoder: Encoder, piece: Piece, recipe: Recipe) -> EncodedPiece:
    """Embed the images of a piece; a row whose vector is not finite becomes a failed one."""
    began = perf_counter()
    features = encoder.encode(piece.images_BHWC)
    finite_B = np.ones(len(piece.images_BHWC), bool)
    for features_BD in features.values():
        finite_B &= np.isfinite(features_BD).all(axis=1)
    decoded = pc.is_null(piece.rows["error"])
    ok = piece.rows.filter(decoded).filter(pa.array(finite_B))
    not_finite = piece.rows.filter(decoded).filter(pa.array(~finite_B))
    code = pa.array([str(ImageErrorCode.NON_FINITE)] * len(not_finite), pa.string())
    failed = pa.concat_tables(
        [piece.rows.filter(pc.invert(decoded)), not_finite.set_column(len(FIXED_FIELDS), ERROR_FIELD, code)]
    )
    vectors = {name: vector_column(features_BD[finite_B], recipe.precision.storage) for name, features_BD in features.items()}
    nulls = {name: pa.nulls(len(failed), pa.list_(pa.float32())) for name in features}
    return EncodedPiece(
        piece.unit,
        piece.index,
        piece.last,
        _with_vectors(ok, vectors),
        _with_vectors(failed, nulls),
        {**piece.seconds, "encode": perf_counter() - began},
        piece.notes,
    )


def _with_vectors(rows: pa.Table, vectors: dict[str, pa.Array]) -> pa.Table:
    for offset, (name, column) in enumerate(vectors.items()):
        rows = rows.add_column(len(FIXED_FIELDS) + offset, name, column)
    return rows


def write_piece(piece: EncodedPiece, *, table_uri: str, recipe_id: str, run_id: str) -> WrittenPiece:
    """Write the rows of a piece as parts of the table, not yet committed."""
    began = perf_counter()
    stem = f"{run_id}-{piece.unit:0{UNIT_STEM_DIGITS}d}-{piece.index:03d}"
    parts = tuple(
        write_part(table_uri, rows, status=status, stem=stem, recipe_id=recipe_id)
        for status, rows in (("ok", piece.ok), ("failed", piece.failed))
        if len(rows)
    )
    return WrittenPiece(
        unit=piece.unit,
        index=piece.index,
        last=piece.last,
        parts=parts,
        failures=dict(Counter(piece.failed["error"].to_pylist())),
        seconds={**piece.seconds, "write": perf_counter() - began},
        notes=piece.notes,
    )
