"""The decode and write tasks of extraction on Ray, and how pieces travel between them and the encoders.

A row of each dataset is one whole unit or piece, so batches of one row keep them together whatever Ray Data does with
blocks; pixels cross the object store once, as one binary value that both sides read without a copy. The workers of these
tasks import this module and so neither torch nor the networks, which take seconds and half a gigabyte in each process.
"""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.extraction.on_ray.needs import Needs, require
from tlray.extraction.plan.plan import Unit
from tlray.extraction.worker.pieces import EncodedRows, Piece, write_piece
from tlray.lake.source.read_images import DecodedImages, read_images
from tlray.lake.source.read_spec import ReadSpec
from tlray.machine.timers import is_past


def unit_rows(units: Sequence[Unit]) -> list[pa.Table]:
    """Units as tables of one row, as the driver hands them to Ray Data."""
    return [pa.table({"unit": pa.array([unit.index], pa.int64()), "items": [_to_ipc(unit.items)]}) for unit in units]


def unit_of(row: dict[str, Any]) -> Unit:
    """Read back the unit of a row of `unit_rows`."""
    return Unit(row["unit"], _from_ipc(row["items"]))


def decode(batch: pa.Table, *, spec_json: str, closes: float | None = None, needs: Needs | None = None) -> Iterator[pa.Table]:
    """Fetch and decode the units of a batch of `unit_rows`; a row for each piece, its content DecodedImages.

    From `closes` on, in seconds since 1970, none is begun.
    """
    if is_past(closes):
        return
    require(needs)
    spec = ReadSpec.model_validate_json(spec_json)
    for row in batch.to_pylist():
        unit = unit_of(row)
        for index, images in enumerate(read_images(unit.items, spec)):
            piece = Piece(unit.index, index, images.is_last, images, images.seconds, images.notes, images.unfit)
            yield _decoded_row(piece)


def write(batch: pa.Table, *, table_uri: str, recipe_id: str, run_id: str, needs: Needs | None = None) -> pa.Table:
    """Write the encoded pieces of a batch; a row for each, its content WrittenParts."""
    require(needs)
    pieces: list[Piece[EncodedRows]] = pieces_of(batch)
    written = [write_piece(piece, table_uri=table_uri, recipe_id=recipe_id, run_id=run_id) for piece in pieces]
    return piece_rows(written)


def piece_rows(pieces: Sequence[Piece[Any]]) -> pa.Table:
    """Pickle pieces, one a row; for content without pixels, which would be copied.

    Their tables must not be slices of larger ones, as a slice is pickled with all that it was cut from.
    """
    return pa.table({"piece": pa.array([pickle.dumps(piece, protocol=5) for piece in pieces], pa.large_binary())})


def pieces_of(rows: pa.Table) -> list[Piece[Any]]:
    """Read back the pieces of rows that `piece_rows` made."""
    return [pickle.loads(data) for data in rows["piece"].to_pylist()]  # noqa: S301  # written by this run's own workers


def _decoded_row(piece: Piece[DecodedImages]) -> pa.Table:
    pixels = piece.content.inputs
    if pixels.dtype == object:  # texts, which are small
        return piece_rows([piece]).append_column("pixels", pa.array([b""], pa.large_binary()))
    buffer = pa.py_buffer(np.ascontiguousarray(pixels).reshape(-1))
    offsets = pa.py_buffer(np.array([0, pixels.nbytes], np.int64))
    without_pixels = piece.with_content(replace(piece.content, inputs=pixels[:0]))
    return piece_rows([without_pixels]).append_column(
        "pixels", pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, buffer])
    )


def decoded_piece(row: pa.Table) -> Piece[DecodedImages]:
    """Read back the piece of a row that `decode` made; its images are a view of the row, not a copy."""
    (piece,) = pieces_of(row)
    images: DecodedImages = piece.content
    if images.inputs.dtype == object:
        return piece
    pixels = np.frombuffer(row["pixels"].chunk(0)[0].as_buffer(), np.uint8)
    images_BHWC = pixels.reshape(-1, *images.inputs.shape[1:])
    return piece.with_content(replace(images, inputs=images_BHWC))


def _to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _from_ipc(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()
