"""Two tables side by side, against sets and NumPy."""

from pathlib import Path

import numpy as np
import pytest

from tests.factories import make_recipe_file, make_rows, vector_of
from tlray.lake.table.parts import Change, round_to_half, write_part
from tlray.lake.table.row_identities import diff as module
from tlray.lake.table.row_identities.diff import contrast
from tlray.lake.table.table import Table

Rows = dict[str, tuple[str, str | None, str | None]]
"""etag, label, error of each image."""


def table_of(uri: str, rows: Rows, **recipe: object) -> Table:
    table = Table.create(uri, make_recipe_file(**recipe))
    parts = []
    for start in range(0, len(rows), 7):
        some = list(rows.items())[start : start + 7]
        for error in {error for _, (_, _, error) in some}:
            chosen = [(name, etag, label) for name, (etag, label, said) in some if said == error]
            part = make_rows(chosen, error)
            parts.append(write_part(uri, part, status="failed" if error else "ok", stem="s", recipe_id="r"))
    table.commit(Change(parts), app_id="x", sequence=1, info={})
    return table


@pytest.mark.parametrize(("rows", "memory_bytes"), [(2**20, 2**20), (10, 0)])
def test_rows_and_vectors(rows: int, memory_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RANGE_ROWS", rows)
    monkeypatch.setattr(module, "MEMORY_BYTES", memory_bytes)
    one: Rows = {f"s3://b/{number:03d}": ("1", "cat", None) for number in range(60)}
    other = {name: row for name, row in one.items() if name > "s3://b/004"} | {"s3://b/900": ("1", None, None)}
    other["s3://b/010"], other["s3://b/011"] = ("2", "cat", None), ("1", "dog", None)
    other["s3://b/012"] = ("1", "cat", "corrupt")
    first = table_of(f"file://{tmp_path}/one", one)
    second = table_of(f"file://{tmp_path}/other", dict(sorted(other.items(), reverse=True)), normalize=True)
    found = contrast(first, second)
    assert found["rows"] == {"both": 55, "first": 5, "second": 1, "etag": 1, "label": 1, "failed": 1}
    assert any("normalize" in line for line in found["recipes"])
    assert found["cosine"] == {"embedding": {"rows": 53, "mean": 1.0, "least": 1.0}}


def test_vectors_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {f"s3://b/{number}": ("1", None, None) for number in range(20)}
    first = table_of(f"file://{tmp_path}/one", names)
    monkeypatch.setattr("tests.factories.vector_of", lambda uri, etag: vector_of(uri, etag + "x"))
    second = table_of(f"file://{tmp_path}/other", names)
    cosines = []
    for name in names:
        one, other = (round_to_half(vector_of(name, etag)) for etag in ("1", "1x"))
        cosines.append(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    found = contrast(first, second)["cosine"]["embedding"]
    assert found == {
        "rows": 20,
        "mean": pytest.approx(np.mean(cosines), abs=1e-5),
        "least": pytest.approx(min(cosines), abs=1e-5),
    }
