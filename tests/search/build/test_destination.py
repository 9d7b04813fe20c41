"""An index is made in a place of its own, or not at all."""

import json
import re
from pathlib import Path

import deltalake
import pyarrow as pa
import pytest

from tests.photos import error_of, result_of, tlray
from tests.search.tables import Bench, rows_for
from tlray.errors import ConfigError
from tlray.search.query.searcher import Searcher


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.fill(50)
    return bench


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("table", "holds a table"),
        ("table/index", "a table, whose vacuum would delete it"),
        ("table/status=ok/a/b", "a table, whose vacuum would delete it"),
        ("others", "holds another program's Delta table"),
        ("others/index", "a table, whose vacuum would delete it"),
        ("photos", "not tlray's (cat.jpg"),
        (".", "not tlray's ("),
        ("photos/cat.jpg", "holds an object"),
        ("photos/cat.jpg/index", "cat.jpg, a file"),
        ("first", ""),
        ("first/files", "not tlray's ("),
        ("first/a/b", "an index, which would delete it"),
        ("model", "holds a model"),
    ],
)
def test_an_index_is_not_written_into_what_is_anothers(
    bench: Bench, tmp_path: Path, out: str, said: str, dry_run: bool
) -> None:
    deltalake.write_deltalake(tmp_path / "others", pa.table({"a": [1]}))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text(json.dumps({}))
    bench.index(out=str(tmp_path / "first"))
    before = files_below(tmp_path)
    if not said:  # an index is brought up to date
        assert bench.index(out=str(tmp_path / out), dry_run=dry_run).get("action") in ("unchanged", "update")
    else:
        with pytest.raises(ConfigError, match=re.escape(said)) as raised:
            bench.index(out=str(tmp_path / out), dry_run=dry_run)
        assert "expected a place of its own for the index" in str(raised.value) and "\n" not in str(raised.value)
    assert files_below(tmp_path) == before


def test_an_empty_folder_and_what_a_killed_build_left_are_taken(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "empty" / "files").mkdir(parents=True)
    (tmp_path / "empty" / "files" / ("faiss-" + 64 * "0")).write_bytes(b"")
    (tmp_path / "empty" / "files" / f".tlray-{32 * '0'}.tmp").write_bytes(b"")
    assert bench.index(out=str(tmp_path / "empty"))["action"] == "built"
    (tmp_path / "empty" / "README").write_text("mine")  # beside an index that is there, it is no hindrance
    bench.commit([rows_for(range(100, 110))])
    assert bench.index(out=str(tmp_path / "empty"))["action"] == "updated"


@pytest.mark.parametrize("name", ["a b", "ü", "a#b", "100%", "a?b", "it's", "[x]", "a,b", "a%20b"])
def test_any_name_will_do(name: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fill(60)
    table, out = tmp_path / "table", tmp_path / name / "an index"
    assert result_of(tlray("index", "--table", table, "--out", out))["action"] == "built"
    bench.commit([rows_for(range(100, 110))])
    assert result_of(tlray("index", "--table", table, "--out", out))["added"] == 10
    assert len(Searcher.open(str(out)).rows) == 70
    assert (out / "versions").is_dir()


def test_a_folder_that_is_a_file_is_said_in_one_line(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    said = error_of(tlray("index", "--table", tmp_path / "table", "--out", tmp_path / "file" / "index"))
    assert "file, a file" in said
