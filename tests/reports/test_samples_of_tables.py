"""Of a large table a report reads little: some parts for its sample, and parts of failures until each code has its examples."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tlray.reports.kinds import table as kind


class FakeTable:
    """A table of parts that are made up as they are read."""

    uri, columns = "file:///table", ("embedding",)
    recipe_file = SimpleNamespace(recipe=None)

    def __init__(self, *rows: int) -> None:
        self._parts = [SimpleNamespace(path=str(number), rows=count) for number, count in enumerate(rows)]
        self.read_parts: list[int] = []

    def parts(self, _status: str) -> list[Any]:
        return self._parts

    def read_part(self, _uri: str, path: str, columns: list[str]) -> pa.Table:
        """Rows whose URI is `part/row`, and whose error is `corrupt` but for the last row of all."""
        self.read_parts.append(int(path))
        rows = self._parts[int(path)].rows
        errors = ["corrupt"] * rows
        if int(path) == len(self._parts) - 1:
            errors[-1] = "empty"
        values = {"uri": [f"{path}/{row}" for row in range(rows)], "error": errors}
        return pa.table({name: values.get(name, [None] * rows) for name in columns})


def faked(monkeypatch: pytest.MonkeyPatch, *rows: int) -> Any:
    table = FakeTable(*rows)
    monkeypatch.setattr(kind, "read_part", table.read_part)
    return table


@pytest.mark.parametrize(("parts", "rows"), [(10_000, 20), (100, 20_000), (3, 7), (1, 9_000)])
def test_a_sample_is_of_few_parts_however_many_there_are(monkeypatch: pytest.MonkeyPatch, parts: int, rows: int) -> None:
    table = faked(monkeypatch, *[rows] * parts)
    sample = kind._sample(table)
    assert len(table.read_parts) == len(set(table.read_parts)) == sample.parts == min(parts, kind.SAMPLE_PARTS)
    assert sample.of == parts
    uris = sample.rows["uri"].to_pylist()
    assert len(set(uris)) == len(uris) == min(kind.SAMPLE_ROWS, rows * sample.parts)
    counts = np.unique([uri.split("/")[0] for uri in uris], return_counts=True)[1]
    assert counts.max() - counts.min() <= 1


def test_a_sample_is_of_large_parts_rather_than_of_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    table = faked(monkeypatch, *[1] * 500, *[20_000] * 20)
    kind._sample(table)
    assert sum(number >= 500 for number in table.read_parts) >= 15


@pytest.mark.parametrize(("failures", "read"), [({"corrupt": 5000}, 1), ({"corrupt": 4999, "empty": 1}, 500)])
def test_failures_are_read_until_each_code_has_its_examples(
    monkeypatch: pytest.MonkeyPatch, failures: dict[str, int], read: int
) -> None:
    table = faked(monkeypatch, *[10] * 500)
    blocks = list(kind._failures(table, {"failed": 5000, "failures": failures}))
    assert len(table.read_parts) == read and len(blocks[-1].rows) == sum(min(count, 3) for count in failures.values())
