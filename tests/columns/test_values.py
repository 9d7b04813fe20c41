"""What values of each format become, and what is refused."""

import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tlray.columns.column import Column, requested, type_of, why_not
from tlray.columns.differences import differ
from tlray.columns.inference import TextTypes
from tlray.columns.values import UnfitError, converted, fitting
from tlray.errors import ConfigError

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
NAIVE = NOON.replace(tzinfo=None)
EAST = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))


@pytest.mark.parametrize(
    ("values", "word", "expected"),
    [
        (pa.array([1, None, 3], pa.int8()), "integer", [1, None, 3]),
        (pa.array([1, 2**40], pa.uint64()), "integer", [1, 2**40]),
        (pa.array([1, None], pa.int32()), "number", [1.0, None]),
        (pa.array([1.0, math.nan, None, math.inf]), "number", [1.0, None, None, math.inf]),
        (pa.array([3.0, math.nan]), "integer", [3, None]),
        (pa.array([Decimal("9.99"), None], pa.decimal128(6, 2)), "number", [9.99, None]),
        (pa.array(["a", None]).dictionary_encode(), "text", ["a", None]),
        (pa.array(["Zürich", ""], pa.large_string()), "text", ["Zürich", ""]),
        (pa.array([date(2026, 1, 31)], pa.date64()), "date", [date(2026, 1, 31)]),
        (pa.array([date(2026, 1, 31)]), "timestamp", [datetime(2026, 1, 31, tzinfo=UTC)]),
        (pa.array([NAIVE], pa.timestamp("ms")), "timestamp", [NOON]),
        (pa.array([EAST], pa.timestamp("us", "Asia/Kolkata")), "timestamp", [NOON]),
        (pa.array([int(NOON.timestamp()) * 10**9 + 999], pa.int64()).cast(pa.timestamp("ns")), "timestamp", [NOON]),
        (pa.array([[1, None], [], None], pa.large_list(pa.int16())), "integer[]", [[1, None], [], None]),
        (pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)), "number[]", [[1.0, 2.0]]),
        (pa.nulls(2), "date", [None, None]),
        (pa.array([None, []]), "text[]", [None, []]),
        (pa.array(["12", "-3", "", "4.0", None]), "integer", [12, -3, None, 4, None]),
        (pa.array(["9.5", "1e3", "nan", "7"]), "number", [9.5, 1000.0, None, 7.0]),
        (pa.array(["true", "False", ""]), "boolean", [True, False, None]),
        (pa.array(["2026-01-31", ""]), "date", [date(2026, 1, 31), None]),
        (
            pa.array(["2026-01-31T12:00:00Z", "2026-01-31 12:00", "2026-01-31T17:30:00+05:30", "2026-01-31T12:00:00.000000"]),
            "timestamp",
            [NOON] * 4,
        ),
        (pa.array(['["a", "b"]', "[]", ""]), "text[]", [["a", "b"], [], None]),
        (pa.array(["[1, 2.5]"]), "number[]", [[1.0, 2.5]]),
    ],
)
def test_values_become_those_of_their_column(values: pa.Array, word: str, expected: list[object]) -> None:
    column = Column(name="x", type=word)
    found = converted(values, column)
    assert found.type == column.field.type and found.to_pylist() == expected
    assert converted(pa.chunked_array([values, values]), column).to_pylist() == expected * 2


@pytest.mark.parametrize(
    ("values", "word", "position"),
    [
        (pa.array([1.0, 2.5]), "integer", 1),
        (pa.array([1, 2**53 + 1], pa.int64()), "number", 1),
        (pa.array([0, 2**63], pa.uint64()), "integer", 1),
        (pa.array([True]), "integer", 0),
        (pa.array([1]), "boolean", 0),
        (pa.array([1]), "text", 0),
        (pa.array([NAIVE]), "date", 0),
        (pa.array(["7", "007"]), "integer", 1),
        (pa.array(["1", "x", "y"]), "number", 1),
        (pa.array(["2026-01-31", "2026-02-30"]), "date", 1),
        (pa.array(["2026-01-31", "31.1.2026"]), "timestamp", 1),
        (pa.array(["[]", "{}", "[["]), "text[]", 1),
        (pa.array([["a"], ["b"]]), "number[]", 0),
        (pa.array([{"a": 1}]), "text", 0),
        (pa.array([b"x"]), "text", 0),
        (pa.array(["yes"]), "boolean", 0),
    ],
)
def test_a_value_that_does_not_fit_is_named(values: pa.Array, word: str, position: int) -> None:
    with pytest.raises(UnfitError) as caught:
        converted(values, Column(name="x", type=word))
    assert caught.value.position == position and caught.value.value == values[position].as_py()


def test_values_of_json_that_do_not_fit_are_null_and_told() -> None:
    found, unfit = fitting([1, "x", None, 2.5, {"a": 1}, [1], True, 10**30, "7", float("nan")], Column(name="x", type="number"))
    assert found.to_pylist() == [1.0, None, None, 2.5, None, None, None, None, 7.0, None]
    assert unfit == [1, 4, 5, 6, 7]
    found, unfit = fitting(["a", "\ud800", 3, None], Column(name="x", type="text"))
    assert found.to_pylist() == ["a", None, None, None] and unfit == [1, 2]
    assert fitting([["a"], []], Column(name="x", type="text[]"))[0].to_pylist() == [["a"], []]
    assert fitting([], Column(name="x", type="text[]"))[0].to_pylist() == []


@pytest.mark.parametrize(
    ("cells", "word"),
    [
        (["1", "-2", "", "30"], "integer"),
        (["1", "2.5"], "number"),
        (["1", "nan"], "integer"),
        (["007", "8"], "text"),
        (["1", "x"], "text"),
        (["true", "FALSE"], "boolean"),
        (["true", "1"], "text"),
        (["2026-01-31"], "date"),
        (["2026-01-31", "2026-02-30"], "text"),
        (["2026-01-31", "2026-01-31T10:00:00Z"], "timestamp"),
        (["99999999999999999999"], "number"),
        (["", ""], "null"),
        (["nan", ""], "text"),
        (["nan", "x"], "text"),
        (["1e5", "3"], "number"),
        (["+1"], "text"),
    ],
)
def test_the_type_of_texts_is_the_narrowest_that_all_are_of(cells: list[str], word: str) -> None:
    types = TextTypes()
    for cell in cells:
        types.add(pa.array([cell]))
    assert types.found == word
    at_once = TextTypes()
    at_once.add(pa.array(cells))
    assert at_once.found == word


def test_numbers_in_texts_are_read_as_duckdb_reads_them() -> None:
    cells = ["0", "-1", "12.50", "1e-3", "-0.0", "123456789012", "0.1", "9007199254740993"]
    expected = [row[0] for row in duckdb.sql(f"select unnest({cells!r})::double").fetchall()]
    assert converted(pa.array(cells), Column(name="x", type="number")).to_pylist() == expected


def test_types_that_do_not_travel() -> None:
    others = [pa.binary(), pa.struct([("a", pa.int64())]), pa.time64("us"), pa.duration("s"), pa.list_(pa.list_(pa.int64()))]
    assert [type_of(kind) for kind in [*others, pa.decimal128(30, 2), pa.map_(pa.string(), pa.string())]] == [None] * 7


def test_names_and_types_that_are_asked_for() -> None:
    assert requested(["price::number", "site", "tags::text[]"]) == {"price": "number", "site": None, "tags": "text[]"}
    assert requested(["all"]) == {}
    for given, said in {
        ("uri",): "'uri' cannot travel",
        ("Status",): "'Status' cannot travel",
        ("embedding_2",): "cannot travel",
        ("a b",): "names of a table's columns have no ' '",
        ("all", "site"): "stands alone",
        ("site", "Site"): "given twice",
        ("price::money",): "has the type 'money'",
        ("",): "it has no name",
    }.items():
        with pytest.raises(ConfigError, match=said):
            requested(given)
    assert why_not("text") is None and why_not("Text", {"text"}) is not None


def test_differences_are_those_of_python() -> None:
    rng = np.random.default_rng(0)
    for kind, some in {
        pa.float64(): [None, 0.0, 1.5],
        pa.string(): [None, "", "a"],
        pa.list_(pa.string()): [None, [], ["a"], ["a", None], ["a", "b"]],
        pa.bool_(): [None, True, False],
    }.items():
        one, other = ([some[at] for at in rng.integers(0, len(some), 300)] for _ in range(2))
        found = differ(pa.chunked_array([one[:100], one[100:]], kind), pa.chunked_array([other], kind))
        assert found.tolist() == [left != right for left, right in zip(one, other, strict=True)]
    assert differ(pa.chunked_array([], pa.string()), pa.chunked_array([], pa.string())).tolist() == []
    assert pc.list_flatten(pa.array([], pa.list_(pa.string()))).to_pylist() == []
