"""Aliases, and what readers see through them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.factories import make_recipe_file
from tlray.errors import ConcurrentWriteError, TableError
from tlray.lake.place.alias import point, read_alias
from tlray.lake.storage.open import open_store
from tlray.lake.table.table import Table


@pytest.fixture(params=["local", "s3"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}" if request.param == "local" else request.getfixturevalue("s3_bucket")


def test_readers_follow_it_and_writers_are_told(lake: str) -> None:
    alias, tables = f"{lake}/current", [Table.create(f"{lake}/t{number}", make_recipe_file()).uri for number in range(2)]
    with pytest.raises(TableError, match="no table at"):
        Table.open(alias)
    for number, table in enumerate(tables):
        now, before = point(alias, table, if_version=number)
        assert (now.version, now.table, before and before.table) == (number + 1, table, tables[0] if number else None)
        assert Table.open(alias).uri == table
    with pytest.raises(TableError, match=f"is an alias, .* name {tables[1]} itself"):
        Table.open_or_none(alias)
    with pytest.raises(ConcurrentWriteError, match=r"is at version 2, not at 1: it names .*t1"):
        point(alias, tables[0], if_version=1)
    assert point(alias, tables[0])[0].version == 3


def test_of_many_swaps_of_a_version_one_succeeds(lake: str) -> None:
    alias = f"{lake}/current"
    for version in range(3):

        def swap(number: int, version: int = version) -> int | None:
            try:
                return int(point(alias, f"{lake}/{number}", if_version=version)[0].table.rpartition("/")[2])
            except ConcurrentWriteError:
                return None

        with ThreadPoolExecutor(8) as threads:
            [won] = [number for number in threads.map(swap, range(8)) if number is not None]
        found = read_alias(alias)
        assert found is not None and (found[0].version, found[0].table) == (version + 1, f"{lake}/{won}")


def test_an_answer_that_was_lost_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tlray.lake.storage.local import LocalStore

    write = LocalStore.write

    def write_and_lose(store: LocalStore, *arguments: object, **options: object) -> bool:
        assert write(store, *arguments, **options)  # type: ignore[arg-type]
        return write(store, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalStore, "write", write_and_lose)
    assert point(f"file://{tmp_path}/a", "file:///t", if_version=0)[0].version == 1
    monkeypatch.undo()
    assert point(f"file://{tmp_path}/a", "file:///t", if_version=1)[0].version == 2


def test_another_object_is_no_alias(tmp_path: Path) -> None:
    (tmp_path / "x").write_text('{"table": "file:///t"}')
    for act in (lambda: point(f"file://{tmp_path}/x", "file:///t"), lambda: Table.open(f"file://{tmp_path}/x")):
        with pytest.raises(TableError, match="neither a table nor an alias"):
            act()


def test_a_write_on_condition(lake: str) -> None:
    store, uri = open_store(lake), f"{lake}/x"
    assert not store.write(uri, b"1", if_match="e")
    assert store.write(uri, b"1")
    etag = store.read(uri).etag
    assert store.write(uri, b"22", if_match=etag)
    assert not store.write(uri, b"333", if_match=etag)
    assert store.read(uri).data == b"22"
