"""Texts of rows: the right ones, and a part that was read is not opened again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest

from tlray.errors import QueryError
from tlray.lake.table.parts import open_part, write_part
from tlray.search.rows import row_texts
from tlray.search.rows.row_table import RowTable
from tlray.search.rows.row_texts import RowTexts


def test_every_row_has_its_text_and_a_row_group_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlray.lake.table.parts.ROW_GROUP_ROWS", 4)
    uri, opened = f"file://{tmp_path}", []
    texts = [f"text {number}" for number in range(10)]
    table = pa.table({"uri": texts, "etag": texts, "text": texts})
    part = write_part(uri, table, status="ok", stem="x", recipe_id="r").path

    def counted(*arguments: str) -> Any:
        opened.append(arguments)
        return open_part(*arguments)

    monkeypatch.setattr(row_texts, "open_part", counted)
    places = [*range(10), 10, 0]
    parts = [part] * 11 + ["status=ok/gone.parquet"]
    rows = cast("RowTable", SimpleNamespace(table=pa.table({"part": parts, "row": places})))
    found = RowTexts(uri)
    assert [found.get(rows, position) for position in (9, *range(10), *range(10))] == [texts[9], *texts, *texts]
    assert len(opened) == 3  # row groups
    for position in (10, 11):
        with pytest.raises(QueryError, match="run `tlray index` again"):
            found.get(rows, position)
