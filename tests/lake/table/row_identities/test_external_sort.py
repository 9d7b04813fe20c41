"""Sorted runs against Python's sort, and the memory that they take."""

import random
from pathlib import Path

import pyarrow as pa
import pytest

from tlray.lake.table.row_identities import external_sort as module
from tlray.lake.table.row_identities.external_sort import SortedRuns, cut_ranges

SCHEMA = pa.schema([("name", pa.string()), ("number", pa.int64())])


@pytest.mark.parametrize(("memory_bytes", "files"), [(0, 2), (500_000, 2), (1_900_000, 1), (10**9, 0)])
def test_rows_in_no_order(memory_bytes: int, files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred runs have rows in each range, and yet no more than the range is in memory, nor more than two files open."""
    for name, value in {"RUN_ROWS": 200, "BATCH_ROWS": 100, "SAMPLE_ROWS": 10, "PLAIN_BYTES": 500_000}.items():
        monkeypatch.setattr(module, name, value)
    rng = random.Random(0)
    names = [f"{rng.randrange(20_000):0100d}" for _ in range(20_000)]  # some come twice
    table = pa.table([names, range(len(names))], schema=SCHEMA)
    runs = SortedRuns(SCHEMA, "name", tmp_path, memory_bytes=memory_bytes)
    runs.add_all(table.slice(start, 70) for start in range(0, len(table), 70))
    assert len(list(tmp_path.iterdir())) == files
    assert 0.9 * min(memory_bytes, table.nbytes) <= memory_bytes - runs.memory_bytes <= memory_bytes

    allocated, sort = [], module._sort

    def sort_and_see(rows: pa.Table, key: str) -> pa.Table:
        allocated.append(pa.total_allocated_bytes())
        return sort(rows, key)

    monkeypatch.setattr(module, "_sort", sort_and_see)
    before = pa.total_allocated_bytes()
    found: list[tuple[str, int]] = []
    for bound in cut_ranges([runs], 500):
        rows = runs.pop_below(bound)
        found += zip(rows["name"].to_pylist(), rows["number"].to_pylist(), strict=True)
    assert found == sorted(zip(names, range(len(names)), strict=True))
    row_bytes = table.nbytes / len(table)
    assert max(allocated) - before < 1.25 * (500 + 100 * 10) * row_bytes, "more than a range with a sample's rows of each run"
