"""Damaged files of a table, as disks and careless hands leave them: one line that names the file, from every command."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from deltalake.exceptions import DeltaError

from tests.factories import make_recipe_file, make_rows
from tests.photos import error_of, tlray
from tlray.errors import StorageError, TableCorruptError
from tlray.lake.table.parts import Change, first_uri, read_part, stream_part, write_part
from tlray.lake.table.table import Table


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Two parts of three rows, and one of failed rows."""
    table = Table.create(f"file://{tmp_path}/t", make_recipe_file())
    for number, error in enumerate((None, None, "corrupt"), start=1):
        rows = make_rows([(f"{number}{name}", "1", None) for name in "abc"], error)
        status = "failed" if error else "ok"
        part = write_part(table.uri, rows, status=status, stem="p", recipe_id=table.recipe_file.recipe_id)
        table.commit(Change([part]), app_id="run", sequence=number, info={})
    return table


def parts(path: Path, status: str) -> list[Path]:
    return sorted((path / f"status={status}").iterdir())


def cut(path: Path) -> None:
    for part in [*parts(path, "ok"), *parts(path, "failed")]:
        part.write_bytes(part.read_bytes()[:100])


def mix_up(path: Path) -> None:
    parts(path, "failed")[0].write_bytes(os.urandom(4096))


def lose(path: Path) -> None:
    shutil.rmtree(path / "status=failed")
    parts(path, "ok")[0].unlink()


@pytest.mark.parametrize("damage", [cut, mix_up, lose])
@pytest.mark.parametrize("command", ["show", "optimize", "verify"])
def test_every_command_names_a_damaged_part(damage: Callable[[Path], None], command: str, table: Table, tmp_path: Path) -> None:
    damage(tmp_path / "t")
    if damage is mix_up and command == "optimize":
        return  # joins parts of one status, and there is one such part of failed rows
    message = error_of(tlray(command, tmp_path / "t"), 1)
    assert "status=" in message and ".parquet" in message
    assert ("TableCorruptError" in message) or damage is lose


def test_every_way_to_read_a_part(table: Table, tmp_path: Path) -> None:
    cut(tmp_path / "t")
    part = table.parts("ok")[0]
    for read in (
        lambda: read_part(table.uri, part.path),
        lambda: list(stream_part(table.uri, part.path, ["uri"])),
        lambda: first_uri(table.uri, part.path),
        table.read,
    ):
        with pytest.raises(TableCorruptError, match=part.path):
            read()


@pytest.mark.parametrize("method", ["vacuum", "create_checkpoint", "cleanup_metadata", "history"])
def test_what_delta_fails_at_is_an_error_of_ours(method: str, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __getattr__(self, name: str) -> object:
            if name == method:
                raise DeltaError("\x1b[31mstore away\x1b[0m")
            return getattr(delta, name)

    delta = table.log._seen()
    monkeypatch.setattr(table.log, "_delta", Failing())
    with pytest.raises(StorageError, match="store away; run again"):
        _ = table.log.unreferenced(1), table.log.clean_log(), table.log.last_run()


def test_a_retention_that_no_calendar_knows_is_refused(table: Table, tmp_path: Path) -> None:
    assert "retention" in error_of(tlray("vacuum", tmp_path / "t", "--retention-hours", str(10**13)))
