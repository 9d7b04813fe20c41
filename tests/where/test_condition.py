"""Conditions give DuckDB's answers on the same rows, and what is none is refused in one line."""

import random
import re
import string
from datetime import UTC, date, datetime, timedelta

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from tlray.errors import WhereError
from tlray.where.condition import read_condition

SITES = ["A", "B", "a", "Zürich", "O'Brien", 'the "best"', "100%", "a_b", "axb", "", "日本", "line\nbreak", None]
TAGS = [[], ["cat"], ["cat", "dog"], ["dog", None], [None], ["Zürich", "O'Brien"], None]


def rows(count: int = 2000) -> pa.Table:
    rng = random.Random(7)
    start = datetime(2026, 1, 1, tzinfo=UTC)

    def some(value: object) -> object:
        return None if rng.random() < 0.15 else value

    return pa.table(
        {
            "id": pa.array(range(count), pa.int64()),
            "price": pa.array([some(rng.choice([0.0, 9.99, 10.0, -1.5, 1e300, rng.uniform(0, 20)])) for _ in range(count)]),
            "count": pa.array([some(rng.choice([0, 3, -7, 2**62, rng.randrange(50)])) for _ in range(count)], pa.int64()),
            "site": pa.array([rng.choice(SITES) for _ in range(count)], pa.string()),
            "is_public": pa.array([some(rng.random() < 0.5) for _ in range(count)], pa.bool_()),
            "day": pa.array([some(date(2026, 1, 1) + timedelta(rng.randrange(60))) for _ in range(count)], pa.date32()),
            "captured_at": pa.array(
                [some(start + timedelta(seconds=rng.randrange(60 * 86_400))) for _ in range(count)], pa.timestamp("us", "UTC")
            ),
            "tags": pa.array([rng.choice(TAGS) for _ in range(count)], pa.list_(pa.string())),
            "sizes": pa.array(
                [some([rng.randrange(4) for _ in range(rng.randrange(4))]) for _ in range(count)], pa.list_(pa.int64())
            ),
            "order": pa.array([rng.choice(["x", "y"]) for _ in range(count)]),
            "meta.camera": pa.array([rng.choice(["one", "two", None]) for _ in range(count)]),
        }
    )


ROWS = rows()

EXPRESSIONS = [
    "price < 10 and site = 'A'",
    "price <= 9.99 or count > 3",
    "price = 10",
    "count = 3.0",
    "count < 3.5 and count > -7.5",
    "not (price < 10)",
    "not (price < 10 and site = 'A')",
    "price is null",
    "price is not null and site is null",
    "is_public",
    "not is_public",
    "is_public is true",
    "is_public is not true",
    "is_public is not false or price > 15",
    "is_public = false",
    "site in ('A', 'Zürich', 'O''Brien')",
    "site not in ('A', 'B')",
    "site in ('A', null)",
    "site not in ('A', null)",
    "count in (0, 3, 9.5)",
    "site = 'the \"best\"'",
    "site <> '日本'",
    "site < 'a'",
    "site >= 'Z' and site < 'a'",
    "site like 'a%'",
    "site like '_'",
    "site like '%%'",
    "site like '100\\%'",
    "site like '100!%' escape '!'",
    "site like 'a!_b' escape '!'",
    "site like 'line%break'",
    "site not like '%r%'",
    "site ilike 'ZÜ%'",
    "site ilike '%b%'",
    "starts_with(site, 'O''') or ends_with(site, '%')",
    "contains(site, '_')",
    "lower(site) = 'a'",
    "upper(site) = 'ZÜRICH'",
    "length(site) > 2",
    "length(site) = 0",
    "price between 5 and 10",
    "count not between 0 and 10",
    "day = '2026-01-31'",
    "day >= date '2026-02-01'",
    "day between '2026-01-10' and '2026-01-20'",
    "day in ('2026-01-01', '2026-01-02')",
    "captured_at < timestamp '2026-01-15 12:00:00'",
    "captured_at >= '2026-02-01T00:00:00Z'",
    "captured_at >= '2026-02-01'",
    "captured_at > day",
    "captured_at::date = date '2026-01-05'",
    "year(day) = 2026 and month(captured_at) = 2",
    "day(day) > 15",
    "list_contains(tags, 'cat')",
    "list_contains(tags, 'O''Brien') or list_contains(tags, 'Zürich')",
    "not list_contains(tags, 'cat')",
    "list_contains(sizes, 2)",
    "len(tags) = 0",
    "len(sizes) > 1 and tags is not null",
    "tags is null",
    "price * 2 < 10",
    "price + count > 10 and count < 100",
    "-count > 3",
    "count - 3 = 0 and price > -1",
    "price / 2 > 4.5",
    "abs(price) = 1.5",
    "coalesce(price, 0) < 1",
    "coalesce(site, 'none') = 'none'",
    "price is distinct from 10",
    "is_public is not distinct from null",
    "site is distinct from 'A'",
    "\"order\" = 'x'",
    "ID < 10",
    "\"meta.camera\" = 'one'",
    "price = null",
    "price < 10 or null",
    "null is null",
    "true",
    "1 = 1 and 2 < 3.5",
    "false or price > 19",
    "'A' = site",
    "((price > 1)) and (((site = 'B') or (count = 3)))",
    "price > 1 and price > 2 and price > 3 and price > 4 or site = 'A' and count = 0",
    "price > 1e1",
    "count = 4611686018427387904",
    "site = 'no such'",
]

WORDS = """price site tags day 'A' 10 - ( ) and or not in is null like between < = :: date , [ ] { ' " é @ # -- /* * case end
lower ? $1 :x ; . 1e5 0x1F true interval array struct cast( as"""


@pytest.fixture(scope="module")
def database() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("set TimeZone = 'UTC'")
    connection.register("photos", ROWS)
    return connection


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_answers_are_those_of_duckdb(database: duckdb.DuckDBPyConnection, expression: str) -> None:
    expected = [one for (one,) in database.execute(f"select id from photos where {expression} order by id").fetchall()]
    found = np.flatnonzero(read_condition(expression, ROWS.schema, "the table").mask(ROWS)).tolist()
    assert found == expected


def test_expressions_tell_rows_apart(database: duckdb.DuckDBPyConnection) -> None:
    """The test above could not fail on expressions that let all rows through, or none."""
    counts = [len(database.execute(f"select id from photos where {one}").fetchall()) for one in EXPRESSIONS]
    assert sum(0 < count < len(ROWS) for count in counts) >= 70


def test_drawn_expressions_are_those_of_duckdb(database: duckdb.DuckDBPyConnection) -> None:
    """Conditions of three-valued logic, put together at random."""
    rng = random.Random(3)
    leaves = [
        "price < 10",
        "site = 'A'",
        "is_public",
        "count is null",
        "day > '2026-01-20'",
        "list_contains(tags, 'dog')",
        "null",
    ]

    def draw(depth: int) -> str:
        if not depth:
            return rng.choice(leaves)
        kind = rng.choice(["and", "or", "not"])
        return f"not ({draw(depth - 1)})" if kind == "not" else f"({draw(depth - 1)}) {kind} ({draw(depth - 1)})"

    for _ in range(60):
        expression = draw(rng.randrange(1, 5))
        expected = [one for (one,) in database.execute(f"select id from photos where {expression} order by id").fetchall()]
        assert np.flatnonzero(read_condition(expression, ROWS.schema, "t").mask(ROWS)).tolist() == expected, expression


def test_columns_that_are_asked() -> None:
    condition = read_condition("price < 10 and (SITE = 'A' or price > 3)", ROWS.schema, "t")
    assert condition.columns == ("price", "site")
    assert read_condition("true", ROWS.schema, "t").columns == ()
    assert condition.mask(ROWS.slice(0, 0)).tolist() == []
    chunked = pa.concat_tables([ROWS.slice(0, 7), ROWS.slice(7, 500), ROWS.slice(507)])
    assert condition.mask(chunked).tolist() == condition.mask(ROWS).tolist()


def test_what_is_divided_by_zero_is_null() -> None:
    table = pa.table({"a": [1.0, 0.0, None], "b": [0, 1, 1]})
    assert read_condition("a / b is null", table.schema, "t").mask(table).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("prise < 10", "has no column prise; did you mean price?"),
        ("price <", "at character"),
        ("price < 10 and", "at character"),
        ("price < 10 price", "at character 12"),
        ("site = 'A", "cannot be read"),
        ("", "is empty"),
        ("price < 10; drop table photos", "cannot be read"),
        ("price", "a number, expected a condition"),
        ("site + 1 = 2", "only numbers are"),
        ("site < 10", "a text and a integer cannot be compared"),
        ("price = 'ten'", "a number and a text cannot be compared"),
        ("tags = 'cat'", "list_contains"),
        ("day = 'yesterday'", "'yesterday' is no date"),
        ("day = '2026-13-01'", "'2026-13-01' is no date"),
        ("price in (select 1)", "query is no part of a condition"),
        ("exists (select 1)", "no part of a condition"),
        ("(select count(*) from photos) > 1", "no part of a condition"),
        ("price > (select 1)", "no part of a condition"),
        ("read_text('/etc/passwd') = 'x'", "no function read_text"),
        ("getenv('HOME') = 'x'", "no function getenv"),
        ("lower(price) = 'x'", "lower takes a text"),
        ("starts_with(site, site)", "starts_with takes"),
        ("list_contains(tags, 3)", "list_contains takes"),
        ("site like site", "like a pattern in quotes"),
        ("case when price > 1 then true else false end", "at character 6 .when."),
        ("price = ?", "no part of a condition"),
        ("price = $1", "no part of a condition"),
        ("* = 1", "cannot be read|no part"),
        ("count + 9223372036854775807 > 0", "cannot be computed"),
        ("(" * 100 + "true" + ")" * 100, "levels of brackets"),
        ("not " * 100 + "true", "levels of brackets"),
        ("- " * 100 + "1 = 1", "levels of brackets"),
        ("x" * 70_000, "70000 characters"),
        ("price::varchar = '10'", "expected a date or timestamp"),
        ("price is 3", "is null, is true|cannot be read"),
        ("price collate nocase = 'a'", "no part of a condition|cannot be read"),
    ],
)
def test_what_is_no_condition_is_refused_in_one_line(expression: str, said: str) -> None:
    with pytest.raises(WhereError, match=said) as caught:
        read_condition(expression, ROWS.schema, "the table").mask(ROWS)
    assert "\n" not in str(caught.value).replace(expression, "") and len(str(caught.value)) < 600


def test_long_chains_are_read_and_answered(database: duckdb.DuckDBPyConnection) -> None:
    chain = " or ".join(f"count = {number}" for number in range(2000))
    values = f"count in ({', '.join(map(str, range(5000)))})"
    for expression in (chain, values):
        found = int(read_condition(expression, ROWS.schema, "t").mask(ROWS).sum())
        assert found == database.execute(f"select count(*) from photos where {values}").fetchone()[0]
    with pytest.raises(WhereError, match="too long"):
        read_condition("0" + "+1" * 5000 + " = 1", ROWS.schema, "t")


def test_no_text_ends_in_anything_but_an_answer_or_a_refusal() -> None:
    rng = random.Random(1)
    words = [*re.findall(r"\S+", WORDS), "\x00"]
    for _ in range(3000):
        text = " ".join(rng.choices(words, k=rng.randrange(1, 9)))
        if rng.random() < 0.2:
            text += "".join(rng.choices(string.printable, k=4))
        try:
            read_condition(text, ROWS.schema, "t").mask(ROWS.slice(0, 3))
        except WhereError:
            continue
