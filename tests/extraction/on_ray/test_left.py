"""What a run waits for is named where it is little, so that an image that its workers die of can be found."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from ray.data.exceptions import ExecutionTimeoutError

from tlray.errors import StorageError
from tlray.extraction.on_ray import run
from tlray.extraction.on_ray.left import Left
from tlray.extraction.on_ray.tasks import piece_rows
from tlray.extraction.plan.plan import Plan, Unit
from tlray.extraction.worker.pieces import Piece, WrittenParts
from tlray.lake.source.source import PAGE_SCHEMA

pytestmark = pytest.mark.ray


def unit(index: int, *sizes: int | None) -> Unit:
    rows = [{"uri": f"s3://b/{index}-{number}.png", "size_bytes": size} for number, size in enumerate(sizes)]
    return Unit(index, pa.Table.from_pylist(rows, PAGE_SCHEMA))


def piece(unit: int, *, is_last: bool) -> Piece[WrittenParts]:
    return Piece(unit, 0, is_last, WrittenParts((), {}), {})


def test_few_units_are_named_by_their_largest_file() -> None:
    left = Left([unit(0, 10, 5_000_000, None), unit(1, 70_000, None), unit(2, 1), unit(3, None)])
    assert str(left) == "4 units are left"
    left.take(piece(2, is_last=True))
    assert str(left) == "6 are left, the largest s3://b/0-1.png (5 MB)"
    left.take(piece(0, is_last=False))
    assert "s3://b/0-1.png" in str(left)
    left.take(piece(0, is_last=True))
    assert str(left) == "3 are left, the largest s3://b/1-0.png (70 kB)"
    left.take(piece(1, is_last=True))
    assert str(left) == "1 is left"
    left.take(piece(3, is_last=True))
    assert str(left) == "0 units are left"


def test_a_run_that_waited_too_long_says_for_what(monkeypatch: pytest.MonkeyPatch) -> None:
    def batches(*_: Any) -> Iterator[pa.Table]:
        yield piece_rows([piece(0, is_last=True)])
        raise ExecutionTimeoutError("Dataset execution made no progress for at least 1800s\nOperators still running:")

    monkeypatch.setattr(run, "_batches", batches)
    nothing: Any = None
    arriving = run.run_on_ray(Plan("images", [unit(0, 1), unit(1, 2, 3_000_000)], [], 3, 3_000_003), nothing, nothing)
    assert next(arriving).unit == 0
    with pytest.raises(StorageError, match=r"for 30 min: 2 are left, the largest s3://b/1-1.png \(3 MB\)\. Look at the"):
        next(arriving)
