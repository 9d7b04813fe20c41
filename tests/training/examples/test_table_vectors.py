"""Vectors of a table: loaded and streamed are the same rows."""

from pathlib import Path

import numpy as np
import pytest

from tests.training.tables import blobs, write_table
from tlray.errors import ExamplesError, TableError
from tlray.lake.storage.uri import to_path
from tlray.lake.table.table import Table
from tlray.training.examples.table_vectors import (
    LoadedVectors,
    StreamedVectors,
    TableRows,
    Vectors,
    load_vectors,
    read_rows,
    vectors_by_column,
)

COUNT = 500


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, np.ndarray]:
    features, classes = blobs(COUNT)
    return write_table(tmp_path_factory.mktemp("vectors") / "table", {"embedding": features}, classes, part_rows=70), features


def vectors_of_all(rows: TableRows, memory_bytes: int) -> Vectors:
    return vectors_by_column(rows, ["embedding"], np.arange(len(rows.uris)), memory_bytes)["embedding"]


def number_of(uri: str) -> int:
    return int(uri.rpartition("/")[2].removesuffix(".jpg"))


@pytest.mark.parametrize(("memory_bytes", "kind"), [(10**9, LoadedVectors), (COUNT * 16 * 8 - 1, StreamedVectors)])
def test_every_wanted_row_comes_once_with_its_own_vector(
    table: tuple[Table, np.ndarray], memory_bytes: int, kind: type
) -> None:
    rows = read_rows(table[0])
    assert rows.uris.to_pylist() == sorted(rows.uris.to_pylist())
    chosen = np.sort(np.random.default_rng(5).permutation(COUNT)[: COUNT // 2])  # half of the rows are examples
    vectors = vectors_by_column(rows, ["embedding"], chosen, memory_bytes)["embedding"]
    assert isinstance(vectors, kind) and vectors.dimensions == 16
    wanted = np.random.default_rng(0).random(len(chosen)) < 0.7
    numbers = np.array([number_of(uri) for uri in rows.uris.to_pylist()])[chosen]
    passes = [vectors.blocks(wanted), *(vectors.batches(wanted, 32, np.random.default_rng(seed)) for seed in (1, 1, 2))]
    orders = []
    for batches in passes:
        pairs = list(batches)
        order = np.concatenate([at for at, _ in pairs])
        assert np.array_equal(np.sort(order), np.flatnonzero(wanted))
        assert np.array_equal(np.concatenate([features for _, features in pairs]), table[1][numbers[order]])
        orders.append(order)
    assert np.array_equal(orders[1], orders[2]) and not np.array_equal(orders[1], orders[3])
    assert [len(at) for at, _ in pairs[:-1]] == [32] * (len(pairs) - 1)


def test_a_stream_mixes_rows_of_several_parts_within_its_memory(table: tuple[Table, np.ndarray]) -> None:
    rows = read_rows(table[0])
    vectors = StreamedVectors(rows, "embedding", np.arange(COUNT), 2 * 4 * 16 * 140)
    batches = list(vectors.batches(np.ones(COUNT, bool), 35, np.random.default_rng(0)))
    firsts = np.cumsum([0, *(part.rows for part in rows.parts)])
    of_part = [set(np.searchsorted(firsts, rows.place_T[at], side="right")) for at, _ in batches]
    assert all(len(some) == 2 for some in of_part[:3])


def test_loaded_rows_do_not_depend_on_how_they_lie_in_parts(tmp_path: Path, table: tuple[Table, np.ndarray]) -> None:
    features, classes = blobs(COUNT)
    other = write_table(tmp_path / "table", {"embedding": features}, classes, part_rows=333, seed=9)
    one, two = (read_rows(some) for some in (table[0], other))
    assert one.uris.equals(two.uris) and one.labels.equals(two.labels)
    assert np.array_equal(*(load_vectors(rows, "embedding", np.arange(COUNT)) for rows in (one, two)))


def test_an_empty_table_and_one_that_was_vacuumed(tmp_path: Path) -> None:
    features, classes = blobs(20)
    table = write_table(tmp_path / "table", {"embedding": features}, classes)
    rows = read_rows(table)
    streamed = vectors_of_all(rows, 1)
    to_path(f"{table.uri}/{table.parts()[0].path}").unlink()
    for reads in (
        lambda: read_rows(table),
        lambda: vectors_of_all(rows, 10**9),
        lambda: list(streamed.blocks(np.ones(20, bool))),
    ):
        with pytest.raises(TableError, match="the table moved on and was vacuumed"):
            reads()
    with pytest.raises(ExamplesError, match="has no row with a vector"):
        read_rows(Table.open(table.uri, 0))
