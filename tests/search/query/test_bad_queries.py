"""Every bad input of a search is one line that names it, and exit code 2."""

import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.photos import error_of, result_of, tlray
from tests.search.tables import Bench, exact, rows_for, vectors_for
from tlray.errors import QueryError
from tlray.lake.table.table import Table
from tlray.search.query.searcher import Searcher
from tlray.search.query.vector_file import read_vector_file
from tlray.search.rows.selection import Filter

QUERIES = vectors_for(range(4), "q")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("bad"))
    bench.fill(200)
    bench.index()
    return bench


def search(bench: Bench, *arguments: object) -> dict:
    return result_of(tlray("search", "--index", bench.index_path, *map(str, arguments)))


def refused(bench: Bench, *arguments: object) -> str:
    return error_of(tlray("search", "--index", bench.index_path, *map(str, arguments)))


@pytest.mark.parametrize(
    "queries",
    [
        QUERIES,
        QUERIES[0],
        np.asfortranarray(QUERIES),
        QUERIES[:, ::-1][:, ::-1],
        QUERIES.astype(np.float64),
        QUERIES.astype(">f4"),
        QUERIES.astype(np.longdouble),
        np.round(100 * QUERIES).astype(np.int16),
    ],
)
def test_vectors_of_any_numeric_type_and_order_are_answered(bench: Bench, tmp_path: Path, queries: np.ndarray) -> None:
    np.save(tmp_path / "q.npy", queries)
    uris, vectors_ND = bench.all()
    wanted_BK, _ = exact(np.atleast_2d(queries).astype(np.float64), vectors_ND, 3)
    answers = search(bench, "--vector", tmp_path / "q.npy", "-k", 3)["answers"]
    assert [[hit["uri"] for hit in answer["hits"]] for answer in answers] == [[uris[at] for at in row] for row in wanted_BK]


def saved(array: object, **options: bool) -> Callable[[Path], object]:
    return lambda path: np.save(path.open("wb"), array, **options)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (saved(QUERIES[:, :5]), "shape (4, 5)"),
        (saved(QUERIES[None]), "shape (1, 4, 32)"),
        (saved(np.float32(3)), "shape ()"),
        (saved(np.zeros((0, 32))), "no vector"),
        (saved(np.zeros((2, 32)) * np.nan), "query 0 (from 0) has values that are not finite"),
        (saved(np.full((2, 32), 1e300)), "not finite"),
        (saved(QUERIES.astype(complex)), "complex128"),
        (saved(np.array(["a"] * 32)), "<U1"),
        (saved(np.zeros(32, "M8[s]")), "datetime64"),
        (saved(np.zeros(32, [("a", "f4")])), "'a'"),
        (saved(np.array([QUERIES[0], None], object), allow_pickle=True), "Python objects"),
        (lambda path: np.savez(path.open("wb"), a=QUERIES), "archive"),
        (lambda path: path.write_bytes(pickle.dumps(QUERIES)), "not a NumPy array"),
        (lambda path: path.write_text("1 2 3"), "not a NumPy array"),
        (lambda path: path.write_bytes(b""), "not a NumPy array"),
        (lambda path: path.mkdir(), "no file"),
        (lambda path: None, "no file"),
    ],
)
def test_a_bad_vector_file_is_named(bench: Bench, tmp_path: Path, write: Callable[[Path], object], said: str) -> None:
    path = tmp_path / "q.npy"
    write(path)
    message = refused(bench, "--vector", path)
    assert said in message and "q.npy" in message and "expected" in message


def test_a_damaged_vector_file_is_refused_in_one_line_whatever_the_damage(tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", QUERIES)
    good, path, chance = (tmp_path / "good.npy").read_bytes(), tmp_path / "bad.npy", random.Random(0)
    for _ in range(1500):
        data = bytearray(good)
        for _ in range(chance.randint(1, 5)):
            data[chance.randrange(140)] = chance.choice([chance.randrange(256), *b"(){}[]',:0123456789 L<>|fiuOUTn"])
        path.write_bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
        try:
            assert read_vector_file(str(path)).ndim == 2
        except QueryError as error:
            assert "\n" not in str(error)


def test_arrays_that_are_no_queries_are_refused_in_python(bench: Bench) -> None:
    searcher = Searcher.open(str(bench.index_path))
    for given in ([[1.0], [1.0, 2.0]], "text", None, [["a"] * 32], QUERIES.astype(complex), QUERIES[0]):
        with pytest.raises(QueryError, match=r"expected \(B, 32\) numbers"):
            searcher.search(given)
    with pytest.raises(QueryError, match="k is 0"):
        searcher.search(QUERIES, 0)
    assert searcher.search(QUERIES.tolist(), 2).positions_BK.shape == (4, 2)
    assert searcher.search(np.empty((0, 32)), 2).to_lists() == []


@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8\xff\xe0 half"])
def test_an_image_that_cannot_be_used_is_named(
    bench: Bench, tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.factories import make_recipe
    from tlray.lake.image.decode import decode_image

    class Decoder:
        def embed(self, images: list[bytes]) -> np.ndarray:
            decode_image(images[0], make_recipe().preprocessing, max_pixels=10**6)
            raise AssertionError("it was decoded")

    monkeypatch.setattr("tlray.search.query.query_encoder.QueryEncoder", lambda *_: Decoder())
    path = tmp_path / "cat.jpg"
    path.write_bytes(data)
    assert "cat.jpg cannot be used" in refused(bench, "--image", path)


def test_more_than_there_is_and_filters(bench: Bench, tmp_path: Path) -> None:
    uri = "file:///photos/train/000007.jpg"
    (answer,) = search(bench, "--uri", uri, "-k", 5000)["answers"]
    assert len(answer["hits"]) == 199
    outcome = tlray("search", "--index", bench.index_path, "--uri", uri, "--label", "dgo")
    result = result_of(outcome)
    assert result["answers"][0]["hits"] == [] and result["filtered_rows"] == 0
    assert "no row of the index has one of the labels ['dgo'], so nothing is found" in outcome.stderr
    assert "'label 1'" in outcome.stderr and "file:///photos/train/000000.jpg" in outcome.stderr
    outcome = tlray("search", "--index", bench.index_path, "--uri", uri, "--label", "dgo", "--label", "label 1")
    assert result_of(outcome)["filtered_rows"] == 40 and "no row of the index has one of the labels ['dgo']" in outcome.stderr
    # A path stands for its URI, as everywhere.
    found = search(bench, "--uri", "/photos/train/000007.jpg", "--prefix", "/photos/train/00001")["answers"][0]["hits"]
    assert {hit["uri"] for hit in found} == {f"file:///photos/train/{number:06d}.jpg" for number in range(10, 20)}
    assert len(search(bench, "--uri", uri, "--prefix", "/photos/train/", "-k", 300)["answers"][0]["hits"]) == 199
    assert search(bench, "--uri", uri, "--prefix", "/photos/trai/")["filtered_rows"] == 0
    searcher = Searcher.open(str(bench.index_path))
    assert searcher.count(Filter()) == 200 and searcher.count(Filter(labels=("none",))) == 0
    assert searcher.search(QUERIES, 3, Filter(labels=("none",))).to_lists() == [[]] * 4


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("folder", "a folder"),
        ("new/", "a folder"),
        ("answers.csv", "answers.parquet"),
        ("answers.JSON", "Parquet"),
        ("file/answers.parquet", "is a file"),
        ("gs://b/answers.parquet", "is only read"),
        ("ftp://b/answers.parquet", "scheme"),
    ],
)
def test_answers_that_cannot_be_written_are_refused_before_any_work(bench: Bench, tmp_path: Path, out: str, said: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    out = out if "://" in out else f"{tmp_path}/{out}"
    assert said in refused(bench, "--uri", "file:///photos/train/000007.jpg", "--out", out)
    assert said in error_of(tlray("duplicates", "--index", bench.index_path, "--out", out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_file_of_answers_is_there_whole_or_not_at_all(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "new folder" / "answers"
    arguments = ["--queries", bench.table.uri, "--out", out, "-k", 2]
    assert search(bench, *arguments)["queries"] == 200
    assert len(pl.read_parquet(out)) == 400
    before = out.read_bytes()

    def torn(*_: object) -> None:
        raise QueryError("torn")

    with monkeypatch.context() as patched:
        patched.setattr("tlray.search.query.search.answer_part", torn)
        assert "torn" in refused(bench, *arguments)
    assert out.read_bytes() == before and [path.name for path in out.parent.iterdir()] == ["answers"]


def test_a_table_of_no_queries_is_said(bench: Bench, tmp_path: Path) -> None:
    empty = Table.create(f"file://{tmp_path}/empty", bench.table.recipe_file)
    assert "nothing to answer" in refused(bench, "--queries", empty.uri, "--out", tmp_path / "a.parquet")
    other = Bench(tmp_path / "other", pool="max")
    other.commit([rows_for(range(5))])
    assert "RecipeMismatchError" in refused(bench, "--queries", other.table.uri, "--out", tmp_path / "a.parquet")
    assert "no table" in refused(bench, "--queries", tmp_path / "none", "--out", tmp_path / "a.parquet")
