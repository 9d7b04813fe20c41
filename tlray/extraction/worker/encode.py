"""The encoding stage: decoded pieces to vectors or predictions.

Shape legend: B images of a piece, D embedding length.
"""

from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.errors import ImageErrorCode
from tlray.extraction.worker.pieces import EncodedRows, Piece
from tlray.extraction.worker.prediction_columns import prediction_columns
from tlray.lake.source.read_images import DecodedImages
from tlray.lake.table.parts import ERROR_FIELD, FIXED_FIELDS, own_fields, vector_column
from tlray.recipe import RecipeFile


class TimedEncoder(Protocol):
    """What this stage needs of an encoder."""

    def encode_timed(self, images_BHWC: np.ndarray) -> tuple[dict[str, np.ndarray], float]: ...  # noqa: D102


def encode_piece(encoder: TimedEncoder, piece: Piece[DecodedImages], file: RecipeFile) -> Piece[EncodedRows]:
    """Make the table's own columns of the images of a piece; a row whose vector is not finite becomes a failed one.

    Args:
        encoder: of the table (`tlray.extraction.worker.scoring_encoder.with_head`).
        piece: decoded.
        file: the table's.
    """
    images = piece.content
    features, encode_seconds = encoder.encode_timed(images.images_BHWC)
    finite_B = np.ones(len(images.images_BHWC), bool)
    for features_BD in features.values():
        finite_B &= np.isfinite(features_BD).all(axis=1)
    decoded = pc.is_null(images.rows["error"])
    ok = images.rows.filter(decoded).filter(pa.array(finite_B))
    not_finite = images.rows.filter(decoded).filter(pa.array(~finite_B))
    code = pa.array([str(ImageErrorCode.NON_FINITE)] * len(not_finite), pa.string())
    failed = pa.concat_tables(
        [images.rows.filter(pc.invert(decoded)), not_finite.set_column(len(FIXED_FIELDS), ERROR_FIELD, code)]
    )
    columns = _own_columns({name: features_BD[finite_B] for name, features_BD in features.items()}, file)
    nulls = {field.name: pa.nulls(len(failed), field.type) for field in own_fields(file)}
    rows = EncodedRows(_with_columns(ok, columns), _with_columns(failed, nulls))
    return piece.with_content(rows, encode=encode_seconds)


def _own_columns(features: dict[str, np.ndarray], file: RecipeFile) -> dict[str, pa.Array]:
    """As `own_fields` has them, of rows whose numbers are finite."""
    output, storage = file.output, file.recipe.precision.storage
    predictions = prediction_columns(features[output.scores], output) if output else {}
    return predictions | {column: vector_column(features[column], storage) for column in file.embedding_columns}


def _with_columns(rows: pa.Table, columns: dict[str, pa.Array]) -> pa.Table:
    for offset, (name, column) in enumerate(columns.items()):
        rows = rows.add_column(len(FIXED_FIELDS) + offset, name, column)
    return rows
