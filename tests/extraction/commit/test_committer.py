"""What a commit's failure leaves for the next one, by Polars."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.factories import make_recipe_file, make_rows, read_with_polars
from tlray.errors import StorageError
from tlray.extraction.commit.committer import Committer
from tlray.extraction.plan.plan import Group, StaleRows
from tlray.extraction.worker.pieces import Piece, WrittenParts
from tlray.lake.table.parts import Change, Part, write_part
from tlray.lake.table.rewrite import in_this_thread
from tlray.lake.table.table import Table


def part_of(table: Table, names: str) -> Part:
    rows = make_rows([(name, "1", None) for name in names])
    return write_part(table.uri, rows, status="ok", stem="s", recipe_id=table.recipe_file.recipe_id)


def test_units_that_wait_outlive_a_rewrite_that_fails(tmp_path: Path) -> None:
    table = Table.create(f"file://{tmp_path}/t", make_recipe_file())
    old = part_of(table, "abc")
    table.commit(Change([old]), app_id="before", sequence=1, info={})

    def failing(function: Callable[..., Any], *arguments: Any, **options: Any) -> "Future[Any]":
        failures.append(function)
        if len(failures) > 1:
            return in_this_thread(function, *arguments, **options)
        future: Future[Any] = Future()
        future.set_exception(StorageError("a worker was lost"))
        return future

    failures: list[object] = []
    committer = Committer(table, "run1", submit=failing)
    deletion = Group((), (StaleRows(old, np.array([1], np.uint32)),))
    committer.start([deletion, Group((0,))])
    committer.add(Piece(0, 0, True, WrittenParts((part_of(table, "xy"),), {}), {}))
    with pytest.raises(StorageError, match="a worker was lost"):
        committer.flush(now=True)
    assert read_with_polars(table)["uri"].to_list() == ["a", "b", "c"]
    assert committer.flush(now=True)
    assert [uri for uri in read_with_polars(table)["uri"] if uri in "xy"] == ["x", "y"]
