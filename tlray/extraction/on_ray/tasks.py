"""The decode and write tasks of extraction on Ray, and how pieces travel between them and the encoders.

A row of each dataset is one whole unit or piece, so batches of one row keep them together whatever Ray Data does with
blocks; pixels cross the object store once, as one binary value that both sides read without a copy. The workers of these
tasks import this module and so neither torch nor the networks, which take seconds and half a gigabyte in each process.
"""

import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.extraction.plan.plan import Unit
from tlray.extraction.worker.fetch import FetchSpec, Piece, fetch_unit
from tlray.extraction.worker.pieces import EncodedPiece, write_piece


def unit_rows(units: Sequence[Unit]) -> list[pa.Table]:
    """A plan's units as one-row tables."""
    return [pa.table({"unit": pa.array([unit.index], pa.int64()), "items": [_to_ipc(unit.items)]}) for unit in units]


def unit_of(row: dict[str, Any]) -> Unit:
    """The unit of a row of `unit_rows`."""
    return Unit(row["unit"], _from_ipc(row["items"]))


def decode(batch: pa.Table, *, spec_json: str) -> Iterator[pa.Table]:
    """Fetch and decode units; one row a piece."""
    spec = FetchSpec.model_validate_json(spec_json)
    for row in batch.to_pylist():
        for piece in fetch_unit(unit_of(row), spec):
            yield _piece_to_row(piece)


def write(batch: pa.Table, *, table_uri: str, recipe_id: str, run_id: str) -> pa.Table:
    """Write encoded pieces; one row of JSON (`WrittenPiece`) each."""
    documents = []
    for row in batch.to_pylist():
        seconds, notes = pickle.loads(row["seconds"])  # noqa: S301  # written by `encoded_row`
        piece = EncodedPiece(
            row["unit"], row["index"], row["last"], _from_ipc(row["ok"]), _from_ipc(row["failed"]), seconds, notes
        )
        written = write_piece(piece, table_uri=table_uri, recipe_id=recipe_id, run_id=run_id)
        documents.append(written.model_dump_json())
    return pa.table({"written": documents})


def _piece_to_row(piece: Piece) -> pa.Table:
    pixels = piece.images_BHWC
    buffer = pa.py_buffer(np.ascontiguousarray(pixels).reshape(-1))
    offsets = pa.py_buffer(np.array([0, pixels.nbytes], np.int64))
    return pa.table(
        {
            "unit": [piece.unit],
            "index": [piece.index],
            "last": [piece.last],
            "rows": [_to_ipc(piece.rows)],
            "shape": [list(pixels.shape)],
            "pixels": pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, buffer]),
            "seconds": [pickle.dumps((piece.seconds, piece.notes))],
        }
    )


def piece_of(row: pa.Table) -> Piece:
    """The piece of a row that `decode` made; its images are a view of the row."""
    pixels = row["pixels"].chunk(0)
    shape = row["shape"][0].as_py()
    images_BHWC = np.frombuffer(pixels[0].as_buffer(), np.uint8).reshape(shape)
    seconds, notes = pickle.loads(row["seconds"][0].as_py())  # noqa: S301  # written by `decode`
    return Piece(
        row["unit"][0].as_py(),
        row["index"][0].as_py(),
        row["last"][0].as_py(),
        _from_ipc(row["rows"][0].as_py()),
        images_BHWC,
        seconds,
        notes,
    )


def encoded_row(encoded: EncodedPiece) -> pa.Table:
    """An encoded piece as the row that `write` takes."""
    return pa.table(
        {
            "unit": [encoded.unit],
            "index": [encoded.index],
            "last": [encoded.last],
            "ok": [_to_ipc(encoded.ok)],
            "failed": [_to_ipc(encoded.failed)],
            "seconds": [pickle.dumps((encoded.seconds, encoded.notes))],
        }
    )


def _to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _from_ipc(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()
