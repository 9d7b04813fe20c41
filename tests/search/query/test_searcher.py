"""Searches by vector, row, label and image, with filters, held against NumPy; and the commands around them."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.photos import RECIPE, error_of, photo, result_of, tlray, write_photos
from tests.search.tables import Bench, exact, rows_for, vectors_for
from tlray.errors import GoldenMismatchError, QueryError, TableError
from tlray.search.query.searcher import Searcher
from tlray.search.rows.selection import Filter

FACTORIES = ["Flat", "HNSW16", "IVF32,Flat", "IVF16,SQ4"]


@pytest.fixture(scope="module", params=FACTORIES)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """2,000 rows below train/, 1,000 below test/, and some removed again."""
    bench = Bench(tmp_path_factory.mktemp("bench"))
    parts = bench.fill(2100, part_rows=300)
    bench.commit([rows_for(range(5000, 6000), folder="test")])
    bench.index(factory=request.param)
    bench.commit([rows_for(range(100, 300))], parts[:1])
    assert bench.index()["action"] == "updated"
    return bench


@pytest.fixture(scope="module")
def searcher(bench: Bench) -> Searcher:
    return Searcher.open(str(bench.index_path))


def answers(searcher: Searcher, queries_BD: np.ndarray, k: int, where: Filter) -> list[list[str]]:
    return [[hit["uri"] for hit in hits] for hits in searcher.search(queries_BD, k, where).to_lists()]


@pytest.mark.parametrize(
    "where",
    [
        Filter(labels=("label 1", "label 3")),
        Filter(prefixes=("file:///photos/test/",)),
        Filter(("label 2",), ("file:///photos/test/",)),
    ],
)
def test_filters_find_the_nearest_of_what_they_let_through(bench: Bench, searcher: Searcher, where: Filter) -> None:
    uris, vectors_ND = bench.all()
    numbers = np.array([int(uri[-10:-4]) for uri in uris])
    passes = np.ones(len(uris), bool)
    if where.labels:
        passes &= np.isin(numbers % 5, [int(label[-1]) for label in where.labels])
    if where.prefixes:
        passes &= np.array([uri.startswith(where.prefixes) for uri in uris])
    queries_BD = vectors_for(range(90_000, 90_050), "q")
    kept = np.flatnonzero(passes)
    wanted_BK, _ = exact(queries_BD, vectors_ND[kept], 10)
    found = answers(searcher, queries_BD, 10, where)
    allowed = {uris[at] for at in kept}
    assert all(set(one) <= allowed and len(one) == 10 for one in found)
    share = [len(set(one) & {uris[kept[at]] for at in row}) / 10 for one, row in zip(found, wanted_BK, strict=True)]
    assert np.mean(share) >= 0.93


def test_a_filter_with_few_rows_returns_them_all(searcher: Searcher) -> None:
    where = Filter(prefixes=("file:///photos/test/00500",))
    (found,) = answers(searcher, vectors_for([1], "q"), 50, where)
    assert sorted(found) == [f"file:///photos/test/{number:06d}.jpg" for number in range(5000, 5010)]
    assert answers(searcher, vectors_for([1], "q"), 5, Filter(labels=("no such",))) == [[]]


def test_more_is_asked_for_than_there_is(searcher: Searcher) -> None:
    (found,) = answers(searcher, vectors_for([1], "q"), 10_000, Filter())
    assert len(found) == len(set(found)) == len(searcher.rows)


def test_a_row_is_left_out_of_its_own_answer(bench: Bench, searcher: Searcher) -> None:
    uris, vectors_ND = bench.all()
    asked = [uris[at] for at in range(0, len(uris), 97)]
    wanted_BK, _ = exact(vectors_ND[::97], vectors_ND, 11)
    hits = searcher.search_uris(asked, 10).to_lists()
    share = []
    for uri, found, row in zip(asked, hits, wanted_BK, strict=True):
        assert len(found) == 10 and uri not in {hit["uri"] for hit in found}
        share.append(len({hit["uri"] for hit in found} & {uris[at] for at in row[1:]}) / 10)
    assert np.mean(share) >= 0.93


def test_a_label_is_searched_by_its_mean(bench: Bench, searcher: Searcher) -> None:
    uris, vectors_ND = bench.all()
    numbers = np.array([int(uri[-10:-4]) for uri in uris])
    unit_ND = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    np.testing.assert_allclose(searcher.centroid("label 4"), unit_ND[numbers % 5 == 4].mean(axis=0), atol=1e-3)


def test_stored_vectors_are_those_of_the_table(bench: Bench, searcher: Searcher) -> None:
    uris, vectors_ND = bench.all()
    unit_of = dict(zip(uris, vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True), strict=True))
    seen = 0
    for ids_B, vectors_BD in searcher.exact.blocks():
        names = [searcher.rows.uri(at) for at in searcher.rows.positions(ids_B)]
        np.testing.assert_allclose(vectors_BD, [unit_of[name] for name in names], atol=1e-6)
        np.testing.assert_array_equal(searcher.exact.take(ids_B[::7]), vectors_BD[::7])
        seen += len(ids_B)
    assert seen == len(uris)


@pytest.mark.parametrize(
    "queries_BD",
    [np.zeros(32), np.zeros((1, 31)), np.full((2, 32), np.nan), np.full((2, 32), np.inf), np.full((1, 32), 1e30, np.float32)],
)
def test_vectors_that_do_not_fit_are_refused(searcher: Searcher, queries_BD: np.ndarray) -> None:
    with pytest.raises(QueryError, match="expected"):
        searcher.search(queries_BD)


def test_queries_of_any_precision_are_answered(searcher: Searcher) -> None:
    half_BD = (100 * vectors_for(range(20), "q")).astype(np.float16)  # the square of their length is too large for float16
    found = answers(searcher, half_BD, 10, Filter())
    for dtype in (np.float32, np.float64):
        assert answers(searcher, half_BD.astype(dtype), 10, Filter()) == found


def test_what_is_not_in_the_index_is_said(searcher: Searcher) -> None:
    with pytest.raises(QueryError, match="not in the index"):
        searcher.search_uris(["file:///photos/train/000001.jpg"])  # deleted before
    with pytest.raises(QueryError, match="label"):
        searcher.centroid("none")


def test_a_compressed_index_whose_table_was_vacuumed_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (part,) = bench.fill(300)
    bench.index(factory="IVF4,SQ4", rerank="never", recall_target=0.1)
    searcher = Searcher.open(str(bench.index_path))
    assert len(searcher.search_rows(np.array([5]), 3).to_lists()[0]) == 3  # out of the table
    (tmp_path / "table" / part.path).unlink()
    with pytest.raises(TableError, match="vacuumed"):
        searcher.search_rows(np.array([6]), 3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real table of 12 photographs and its index."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder / "photos", 12)
    source = ["--source.uri", folder / "photos", "--source.labels", "folder"]
    result_of(tlray("extract", "--local", *source, *RECIPE, "--table", folder / "table"))
    result_of(tlray("index", "--table", folder / "table", "--out", folder / "index"))
    return folder


def test_an_image_finds_itself_with_faiss_and_torch_in_one_process(photos: Path) -> None:
    image = photos / "photos" / "dog" / "00004.jpg"
    result = result_of(tlray("search", "--index", photos / "index", "--image", image, "-k", "3"))
    (answer,) = result["answers"]
    assert answer["hits"][0]["uri"] == f"file://{image}" and answer["hits"][0]["score"] > 0.9999
    assert result["table_versions_ahead"] == 0
    by_uri = result_of(tlray("search", "--index", photos / "index", "--uri", image, "-k", "3"))["answers"][0]["hits"]
    assert [hit["uri"] for hit in by_uri[:2]] == [hit["uri"] for hit in answer["hits"][1:]]
    labelled = result_of(tlray("search", "--index", photos / "index", "--by-label", "cat", "--label", "dog"))["answers"][0][
        "hits"
    ]
    assert {hit["label"] for hit in labelled} == {"dog"} and len(labelled) == 6


def test_a_table_of_queries_is_answered_into_a_file(photos: Path, tmp_path: Path) -> None:
    arguments = [
        "search",
        "--index",
        photos / "index",
        "--queries",
        photos / "table",
        "--out",
        tmp_path / "answers.parquet",
        "-k",
        "2",
    ]
    assert result_of(tlray(*arguments))["queries"] == 12
    frame = pl.read_parquet(tmp_path / "answers.parquet")
    first = frame.filter(pl.col("rank") == 0)
    assert len(frame) == 24 and (first["query"] == first["uri"]).all() and (first["score"] > 0.9999).all()


def test_queries_of_another_recipe_are_refused(photos: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    other = [*RECIPE, "--recipe.pool", "max"]
    result_of(tlray("extract", "--local", "--source.uri", tmp_path / "photos", *other, "--table", tmp_path / "table"))
    arguments = ["search", "--index", photos / "index", "--queries", tmp_path / "table", "--out", tmp_path / "a.parquet"]
    assert "RecipeMismatchError" in error_of(tlray(*arguments))


def test_other_numbers_on_this_machine_are_refused(photos: Path) -> None:
    searcher = Searcher.open(str(photos / "index"))
    golden = searcher._index.recipe_file.golden["embedding"]
    golden[0] = [-value for value in golden[0]]
    with pytest.raises(GoldenMismatchError):
        searcher.search_images([photo(1)])


def test_bad_searches_are_one_line(photos: Path, tmp_path: Path) -> None:
    index = ["search", "--index", photos / "index"]
    np.save(tmp_path / "short.npy", np.zeros((2, 3), np.float32))
    (tmp_path / "text.npy").write_text("no")
    assert "one kind of query" in error_of(tlray(*index))
    assert "one kind of query" in error_of(tlray(*index, "--uri", "a", "--by-label", "cat"))
    assert "not in the index" in error_of(tlray(*index, "--uri", "a.jpg"))
    assert "no image at" in error_of(tlray(*index, "--image", tmp_path / "none.jpg"))
    assert "expected (B, " in error_of(tlray(*index, "--vector", tmp_path / "short.npy"))
    assert ".npy" in error_of(tlray(*index, "--vector", tmp_path / "text.npy"))
    assert "give --out" in error_of(tlray(*index, "--queries", photos / "table"))
    assert "no index at" in error_of(tlray("search", "--index", tmp_path / "none", "--uri", "a"))


def test_a_table_that_moved_on_is_reported(photos: Path, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fill(20)
    bench.index()
    bench.commit([rows_for(range(50, 55))])
    np.save(tmp_path / "query.npy", vectors_for([3], "1"))
    arguments = ["search", "--index", bench.index_path, "--vector", tmp_path / "query.npy", "-k", "1"]
    outcome = tlray(*arguments)
    assert json.loads(outcome.stdout)["table_versions_ahead"] == 1 and "1 versions ahead" in outcome.stderr
