"""The encoding stage: decoded pieces to vectors.

Shape legend: B images of a piece, D embedding length.
"""

from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.errors import ImageErrorCode
from tlray.extract.pieces import EncodedPiece
from tlray.lake.fetch import Piece
from tlray.lake.parts import ERROR_FIELD, FIXED_FIELDS, vector_column
from tlray.recipe import Recipe


class TimedEncoder(Protocol):
    """What this stage needs of an encoder."""

    def encode_timed(self, images_BHWC: np.ndarray) -> tuple[dict[str, np.ndarray], float]: ...  # noqa: D102


def encode_piece(encoder: TimedEncoder, piece: Piece, recipe: Recipe) -> EncodedPiece:
    """Embed the images of a piece; a row whose vector is not finite becomes a failed one."""
    features, encode_seconds = encoder.encode_timed(piece.images_BHWC)
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
        {**piece.seconds, "encode": encode_seconds},
        piece.notes,
    )


def _with_vectors(rows: pa.Table, vectors: dict[str, pa.Array]) -> pa.Table:
    for offset, (name, column) in enumerate(vectors.items()):
        rows = rows.add_column(len(FIXED_FIELDS) + offset, name, column)
    return rows
