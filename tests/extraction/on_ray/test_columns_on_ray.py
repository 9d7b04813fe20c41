"""Columns that travel through the workers of a cluster, into a table on S3."""

from pathlib import Path

import pytest

from tests.extraction.test_in_process import assert_same
from tests.extraction.test_travelling_columns import NAMES, ROWS, write_source
from tests.photos import RECIPE, frame_of, result_of, s3_options, tlray

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]


@pytest.mark.parametrize("kind", ["manifest.csv", "tars"])
def test_workers_write_the_values_that_one_process_writes(lake: str, tmp_path: Path, kind: str) -> None:
    source, columns = write_source(kind, tmp_path)
    arguments = ["extract", "--source.uri", source, "--source.columns", *columns, *RECIPE]
    name = kind.partition(".")[0]
    result = result_of(tlray(*arguments, "--table", f"{lake}/{name}"))
    result_of(tlray(*arguments, "--table", tmp_path / "reference", "--local"))
    frame = frame_of(f"{lake}/{name}", s3_options())
    assert result["ok"] == len(ROWS) and set(NAMES) <= set(frame.columns)
    assert_same(frame, frame_of(tmp_path / "reference"))
    if kind == "tars":
        return
    rows = [row | {"site": "other", "tags": ["x", None]} for row in ROWS]
    write_source(kind, tmp_path, rows)
    changed = result_of(tlray(*arguments, "--table", f"{lake}/{name}"))
    assert (changed["rewritten"], changed["ok"]) == (len(ROWS), 0)
    after = frame_of(f"{lake}/{name}", s3_options())
    assert after["site"].to_list() == ["other"] * len(ROWS) and after["tags"].to_list() == [["x", None]] * len(ROWS)
    assert after.drop("site", "tags").equals(frame.drop("site", "tags"))
