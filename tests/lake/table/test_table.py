import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
from deltalake import DeltaTable

from tests.factories import make_recipe_file, make_rows, read_with_polars
from tlray.errors import (
    AccessError,
    ConcurrentWriteError,
    RecipeMismatchError,
    StorageError,
    TableCorruptError,
    TableError,
)
from tlray.lake.storage.open import open_store
from tlray.lake.table import maintenance
from tlray.lake.table.log.delta_log import DeltaLog
from tlray.lake.table.parts import Change, Part, write_part
from tlray.lake.table.table import Table


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table.create(f"file://{tmp_path}/t", make_recipe_file())


def add(table: Table, names: str, run: str = "run", sequence: int = 1, error: str | None = None) -> Part:
    rows = make_rows([(name, "1", None) for name in names], error)
    status = "failed" if error else "ok"
    part = write_part(table.uri, rows, status=status, stem=run, recipe_id=table.recipe_file.recipe_id)
    table.commit(Change([part]), app_id=run, sequence=sequence, info={})
    return part


def test_other_engines_read_the_table(table: Table) -> None:
    add(table, "abc")
    add(table, "xy", "run2", error="empty")
    frame = read_with_polars(table)
    assert frame["uri"].to_list() == list("abcxy")
    files = DeltaTable(table.uri.removeprefix("file://")).file_uris()
    by_duckdb = duckdb.sql(
        f"select uri, len(embedding) as length, status from read_parquet({files!r}, hive_partitioning=true) order by uri"
    ).fetchall()
    assert by_duckdb == [(name, 4, "ok") for name in "abc"] + [(name, None, "failed") for name in "xy"]
    by_pandas = pd.concat(pd.read_parquet(file) for file in files).sort_values("uri")
    assert by_pandas["uri"].tolist() == list("abcxy")
    assert all(len(vector) == 4 and vector.dtype == np.float32 for vector in by_pandas["embedding"][:3])


@pytest.mark.parametrize("commits", [0, 1, 3])
def test_nothing_is_committed_to_a_table_that_was_removed(table: Table, commits: int) -> None:
    for number in range(commits):
        add(table, "abc"[number], sequence=number + 1)
    folder = Path(table.uri.removeprefix("file://"))
    shutil.rmtree(folder)
    with pytest.raises(ConcurrentWriteError, match="was removed or replaced while it was in use"):
        add(table, "x", sequence=commits + 1)
    assert not (folder / "_delta_log").exists()


@pytest.mark.parametrize("commits", [0, 1, 3])
@pytest.mark.parametrize("theirs", [0, 1, 2])
def test_nothing_is_committed_to_another_table_that_took_its_place(table: Table, commits: int, theirs: int) -> None:
    for number in range(commits):
        add(table, "abc"[number], sequence=number + 1)
    shutil.rmtree(table.uri.removeprefix("file://"))
    other = Table.create(table.uri, make_recipe_file())
    for number in range(theirs):
        add(other, "rst"[number], "other", number + 1)
    with pytest.raises(ConcurrentWriteError):
        add(table, "x", sequence=commits + 1)
    with pytest.raises(ConcurrentWriteError, match="was removed or replaced"):
        table.refresh()
    assert DeltaTable(table.uri.removeprefix("file://")).version() == theirs
    assert read_with_polars(other)["uri"].to_list() == list("rst"[:theirs])


CONDITIONS = {
    'field("error").is_null()': "abc",
    'field("error") == "empty"': "xy",
    'field("label") == "cat"': "b",
    'field("label").is_null()': "acxy",
    'field("width") == 10': "abc",
    'field("uri") == "c"': "c",
    'field("embedding").is_valid()': "abc",
    'field("status") == "failed"': "xy",
}


def test_filters_find_their_rows(table: Table) -> None:
    rows = make_rows([("a", "1", None), ("b", "1", "cat"), ("c", "2", None)])
    part = write_part(table.uri, rows, status="ok", stem="s", recipe_id="r")
    table.commit(Change([part]), app_id="x", sequence=1, info={})
    add(table, "xy", "run2", error="empty")
    # In a process that leaves without its exit handlers: pyarrow's threads over delta-rs's file system can abort there.
    code = f"""
import json, os, sys
from deltalake import DeltaTable
from pyarrow.compute import field
dataset = DeltaTable({table.uri.removeprefix("file://")!r}).to_pyarrow_dataset()
found = {{text: dataset.to_table(columns=["uri"], filter=eval(text))["uri"].to_pylist() for text in {list(CONDITIONS)!r}}}
print(json.dumps(found), flush=True)
os._exit(0)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {text: "".join(sorted(uris)) for text, uris in json.loads(process.stdout).items()} == CONDITIONS


def test_the_same_commit_twice_counts_once(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer of a commit is lost after it arrived: the log decides, not the answer."""
    really = DeltaLog._try_commit

    def lost(self: DeltaLog, *arguments: object) -> Exception | None:
        assert really(self, *arguments) is None
        return OSError("connection reset")

    monkeypatch.setattr(DeltaLog, "_try_commit", lost)
    add(table, "ab")
    assert table.version == 1
    assert read_with_polars(table)["uri"].to_list() == ["a", "b"]


def test_a_failing_store_is_tried_again(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    really, calls = DeltaLog._try_commit, []

    def flaky(self: DeltaLog, *arguments: object) -> Exception | None:
        calls.append(1)
        return OSError("503 SlowDown") if len(calls) < 3 else really(self, *arguments)

    monkeypatch.setattr(DeltaLog, "_try_commit", flaky)
    monkeypatch.setattr("tlray.lake.table.log.delta_log.COMMIT_FIRST_WAIT_SECONDS", 0.001)
    add(table, "ab")
    assert len(calls) == 3 and table.version == 1
    monkeypatch.setattr(DeltaLog, "_try_commit", lambda *_: OSError("503 SlowDown"))
    with pytest.raises(StorageError, match="503"):
        add(table, "c", sequence=2)


def test_a_log_that_refuses_for_a_moment_is_asked_again(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    really_commit, really_refresh, calls = DeltaLog._try_commit, DeltaLog.refresh, []

    def flaky(self: DeltaLog, *arguments: object) -> Exception | None:
        calls.append("commit")
        return OSError("403") if calls.count("commit") < 2 else really_commit(self, *arguments)

    def refused(self: DeltaLog) -> None:
        calls.append("refresh")
        if calls.count("refresh") < 2:
            raise AccessError("credentials have expired")
        really_refresh(self)

    monkeypatch.setattr(DeltaLog, "_try_commit", flaky)
    monkeypatch.setattr(DeltaLog, "refresh", refused)
    monkeypatch.setattr("tlray.lake.table.log.delta_log.COMMIT_FIRST_WAIT_SECONDS", 0.001)
    add(table, "ab")
    assert calls == ["commit", "refresh", "commit"]
    assert read_with_polars(table)["uri"].to_list() == ["a", "b"]


def test_a_commit_is_whole_without_its_checkpoint(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlray.lake.table.log.delta_log.CHECKPOINT_COMMITS", 1)

    def gone(self: DeltaLog) -> DeltaTable:
        raise TableError("no such version any more")

    with monkeypatch.context() as patch:
        patch.setattr(DeltaLog, "_seen", gone)
        add(table, "ab")
        table.log.leave_checkpoint()
    assert read_with_polars(table)["uri"].to_list() == ["a", "b"]


def test_another_writer_is_noticed(table: Table) -> None:
    other = Table.open(table.uri)
    add(table, "ab", "one")
    with pytest.raises(ConcurrentWriteError, match="another writer"):
        add(other, "ab", "two")
    assert read_with_polars(table)["uri"].to_list() == ["a", "b"]


def _create(uri: str, start: object, results: object) -> None:
    start.wait()
    results.put(Table.create(uri, make_recipe_file()).version)


def test_two_drivers_may_create_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, results = context.Event(), context.Queue()
    drivers = [context.Process(target=_create, args=(f"file://{tmp_path}/t", start, results)) for _ in range(4)]
    for driver in drivers:
        driver.start()
    start.set()
    assert [results.get(timeout=600) for _ in drivers] == [0] * 4
    for driver in drivers:
        driver.join()


def test_another_recipe_is_refused(table: Table) -> None:
    with pytest.raises(RecipeMismatchError, match=r"pool: 'max', 'avg'"):
        Table.create(table.uri, make_recipe_file(pool="max"))
    assert Table.create(table.uri, make_recipe_file(weights="elsewhere.pth")).version == 0


def test_what_is_not_a_table_is_refused(tmp_path: Path, table: Table) -> None:
    assert Table.open_or_none(f"file://{tmp_path}/none") is None
    with pytest.raises(TableError, match="no table at"):
        Table.open(f"file://{tmp_path}/none")
    with pytest.raises(TableError, match="version 7"):
        Table.open(table.uri, 7)
    recipe = tmp_path / "t" / "recipe.json"
    text = recipe.read_text()
    recipe.write_text(text.replace('"avg"', '"max"'))
    with pytest.raises(RecipeMismatchError, match="edited"):
        Table.open(table.uri)
    recipe.unlink()
    with pytest.raises(TableError, match=r"without recipe\.json"):
        Table.open(table.uri)


def test_verify_finds_a_flipped_byte(table: Table, tmp_path: Path) -> None:
    add(table, "abc")
    part = add(table, "def", "run2")
    add(table, "xy", "run3", error="corrupt")
    assert maintenance.verify(table)["ok"] == 6
    path = tmp_path / "t" / part.path
    data = bytearray(path.read_bytes())
    for position in range(0, len(data), 97):
        flipped = data.copy()
        flipped[position] ^= 0x10
        path.write_bytes(flipped)
        with pytest.raises(TableCorruptError, match=part.path):
            maintenance.verify(table)
    path.unlink()
    with pytest.raises(TableCorruptError, match="gone"):
        maintenance.verify(table)


def test_verify_finds_an_image_twice(table: Table) -> None:
    add(table, "abc")
    add(table, "cd", "run2")
    with pytest.raises(TableCorruptError, match="1 images have more than one live row"):
        maintenance.verify(table)


def test_verify_finds_rows_of_another_recipe(table: Table) -> None:
    part = write_part(table.uri, make_rows([("a", "1", None)]), status="ok", stem="s", recipe_id="other")
    table.commit(Change([part]), app_id="x", sequence=1, info={})
    with pytest.raises(TableCorruptError, match=r"recipe .*other"):
        maintenance.verify(table)


def test_vacuum_lists_and_deletes_only_what_nobody_needs(table: Table, tmp_path: Path) -> None:
    live = add(table, "abc")
    orphan = write_part(table.uri, make_rows([("z", "1", None)]), status="ok", stem="killed", recipe_id="r")
    assert maintenance.vacuum(table, retention_hours=1, delete=True)["paths"] == []
    assert maintenance.vacuum(table, retention_hours=0, delete=False)["paths"] == [orphan.path]
    assert (tmp_path / "t" / orphan.path).exists()
    assert maintenance.vacuum(table, retention_hours=0, delete=True)["orphans"] == 1
    assert not (tmp_path / "t" / orphan.path).exists()
    assert (tmp_path / "t" / live.path).exists() and (tmp_path / "t" / "recipe.json").exists()
    assert maintenance.verify(table)["ok"] == 3


def test_vacuum_forgets_old_entries_of_the_log(table: Table, tmp_path: Path) -> None:
    for number, name in enumerate("abcdef"):
        add(table, name, f"run{number}")
        if name == "d":
            DeltaTable(tmp_path / "t").create_checkpoint()
    before, log = read_with_polars(table), tmp_path / "t" / "_delta_log"
    old = time.time() - 40 * 86400
    for path in log.iterdir():
        if path.name < f"{5:020d}":
            os.utime(path, (old, old))
    assert maintenance.vacuum(table, retention_hours=168, delete=False)["log_files_deleted"] == 0
    assert maintenance.vacuum(table, retention_hours=168, delete=True)["log_files_deleted"] == 4
    assert Table.open(table.uri).version == 6 and read_with_polars(table).equals(before)
    assert maintenance.show(Table.open(table.uri, 5))["ok"] == 5
    with pytest.raises(TableError, match="no version 2 any more"):
        Table.open(table.uri, 2)
    add(table, "g", "later")
    assert maintenance.verify(table)["ok"] == 7


def test_optimize_joins_parts_and_changes_no_row(table: Table) -> None:
    for number, name in enumerate("abcdefghijklmnopqrst"):
        add(table, name, f"run{number}", error="empty" if name in "xyz" else None)
    add(table, "xy", "failed", error="empty")
    before, version = read_with_polars(table), table.version
    assert maintenance.optimize(table, only_if_many=True)["parts"] == 2
    assert read_with_polars(table).equals(before)
    assert maintenance.verify(table)["ok"] == 20
    assert maintenance.verify(Table.open(table.uri, version))["ok"] == 20
    again = table.version
    maintenance.optimize(table)
    assert table.version == again


def test_show_counts_from_the_log(table: Table) -> None:
    add(table, "abc")
    add(table, "xyz", "two", error="empty")
    about = maintenance.show(table)
    assert (about["ok"], about["failed"], about["failures"], about["parts"]) == (3, 3, {"empty": 3}, 2)
    assert about["recipe"]["backbone"] == "torchvision:alexnet" and about["version"] == 2
    assert maintenance.show(Table.open(table.uri, 1))["failed"] == 0


@pytest.mark.parametrize("name", ["t#1", "t?1", "a b"])
def test_the_log_is_beside_the_parts(name: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of tables made before such names were refused."""
    monkeypatch.setattr("tlray.lake.table.table.require_new_table_place", lambda uri: None)
    table = Table.create(f"{s3_bucket}/{name}", make_recipe_file())
    found = [uri for page in open_store(table.uri).list(table.uri) for uri in page["uri"].to_pylist()]
    assert {"_delta_log", "recipe.json"} <= {uri.removeprefix(f"{table.uri}/").split("/")[0] for uri in found}


def test_a_place_that_delta_would_misread_is_refused(s3_bucket: str) -> None:
    with pytest.raises(TableError, match="percent sign"):
        Table.open_or_none(f"{s3_bucket}/a%20b")
