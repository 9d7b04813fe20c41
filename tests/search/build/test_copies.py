"""Tables with thousands of equal vectors, almost equal ones and all-zero ones, held against NumPy over the table's own rows."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from tests.photos import result_of, tlray
from tests.search.tables import Bench, rows_for, vectors_for
from tlray.errors import TableError
from tlray.lake.table.parts import vector_column
from tlray.search.query.searcher import Searcher
from tlray.search.rows.selection import Filter
from tlray.search.versions.card import Card, read_card

FACTORIES = ["Flat", "HNSW16", "IVF16,Flat", "IVF8,SQ4", "PCA16,HNSW16"]


def rows_of(numbers: range, vectors_ND: np.ndarray) -> pa.Table:
    return rows_for(numbers).set_column(5, "embedding", vector_column(vectors_ND, "full"))


def uris_of(numbers: range) -> list[str]:
    return [f"file:///photos/train/{number:06d}.jpg" for number in numbers]


def card_of(bench: Bench) -> Card:
    return read_card(f"file://{bench.index_path}")


def check(bench: Bench, least_recall: float) -> None:
    """Answers are of the table's rows, each once, with the scores that scikit-learn has; recall counts ties as found."""
    uris, vectors_ND = bench.all()
    at_of = {uri: at for at, uri in enumerate(uris)}
    searcher = Searcher.open(str(bench.index_path))
    assert sorted(searcher.rows.table["uri"].to_pylist()) == sorted(uris)
    queries_BD = np.concatenate([vectors_for(range(100_000, 100_080), "q"), vectors_ND[:: len(uris) // 40]])
    wanted_BN = cosine_similarity(queries_BD.astype(np.float64), vectors_ND.astype(np.float64))
    k = 20
    shares = []
    for query, hits in enumerate(searcher.search(queries_BD, k).to_lists()):
        at = [at_of[hit["uri"]] for hit in hits]
        assert len(set(at)) == k
        np.testing.assert_allclose([hit["score"] for hit in hits], wanted_BN[query, at], atol=2e-6)
        shares.append(np.mean(wanted_BN[query, at] >= np.sort(wanted_BN[query])[-k] - 1e-5))
    assert np.mean(shares) >= least_recall


@pytest.mark.parametrize("factory", FACTORIES)
def test_copies_are_one_node_and_answers_name_all_their_rows(factory: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    vectors_ND = vectors_for(range(3000), "1")
    vectors_ND[1000:2500] = vectors_ND[0]
    (part,) = bench.commit([rows_of(range(3000), vectors_ND)])
    config = {"factory": factory, "rerank": "always"}
    built = bench.index(**config)
    assert built["rows"] == 3000 and card_of(bench).nodes == 1500
    check(bench, 0.93)
    searcher = Searcher.open(str(bench.index_path))
    (hits,) = searcher.search(vectors_ND[:1], 2000).to_lists()
    assert {hit["uri"] for hit in hits[:1501]} == {*uris_of(range(1000, 2500)), *uris_of(range(1))}
    assert {hit["score"] for hit in hits[:1501]} == {1.0} and hits[1501]["score"] < 1
    (hits,) = searcher.search_uris(uris_of(range(1200, 1201)), 1600).to_lists()
    assert len(hits) == 1600 and uris_of(range(1200, 1201))[0] not in {hit["uri"] for hit in hits}
    where = Filter(prefixes=("file:///photos/train/0011",))
    (hits,) = searcher.search(vectors_ND[:1], 200, where).to_lists()
    assert {hit["uri"] for hit in hits} == set(uris_of(range(1100, 1200)))

    # A new row of the same vector joins the node; one of the old copies goes and the node stays.
    kept = np.delete(np.arange(3000), [0, 1000])
    (second,) = bench.commit([rows_of(range(3000), vectors_ND).take(pa.array(kept))], [part])
    bench.commit([rows_of(range(5000, 5020), np.concatenate([vectors_ND[:1].repeat(10, 0), vectors_for(range(10), "new")]))])
    updated = bench.index(**config)
    assert (updated["action"], updated["added"], updated["removed"]) == ("updated", 20, 2)
    assert card_of(bench).nodes == 1510
    check(bench, 0.93)

    # The last of its rows goes, and so does the node; then it comes back as a new one.
    others = np.setdiff1d(np.arange(3000), np.r_[0, 1000:2500])
    bench.commit([rows_of(range(3000), vectors_ND).take(pa.array(others))], [second])
    bench.commit([], [each for each in bench.table.open(bench.table.uri).parts() if each.rows == 20])
    assert bench.index(**config)["action"] == "updated"
    assert card_of(bench).nodes == 1499
    check(bench, 0.93)
    bench.commit([rows_of(range(7000, 7010), vectors_ND[:1].repeat(10, 0))])
    assert bench.index(**config)["action"] == "updated"
    assert card_of(bench).nodes == 1500
    check(bench, 0.93)


@pytest.mark.parametrize("factory", FACTORIES)
def test_many_new_copies_are_merged_with_the_rest(factory: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fill(2000)
    config = {"factory": factory, "rerank": "always", "recall_target": 0.9}
    bench.index(**config)
    vectors_ND = vectors_for(range(8000, 8500), "1")
    vectors_ND[:200] = vectors_for([7], "1")
    bench.commit([rows_of(range(8000, 8500), vectors_ND)])
    assert bench.index(**config)["action"] == "updated"
    card = card_of(bench)
    assert "delta" not in card.files and (card.rows, card.nodes, card.next_node, card.next_id) == (2500, 2301, 2301, 2500)
    check(bench, 0.9)


def test_the_recall_of_the_default_index_holds_for_rows_beside_thousands_of_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tlray.search.neighbours.factory.FLAT_MAX_ROWS", 100)
    bench = Bench(tmp_path)
    vectors_ND = vectors_for(range(4000), "1")
    vectors_ND[:2800] = vectors_ND[0]
    bench.commit([rows_of(range(4000), vectors_ND)])
    assert bench.index()["factory"] == "HNSW32"
    assert card_of(bench).nodes == 1201
    queries_BD = vectors_ND[2800:3100]
    wanted_BN = cosine_similarity(queries_BD, vectors_ND)
    scores_BK = Searcher.open(str(bench.index_path)).search(queries_BD, 10).scores_BK
    assert (scores_BK >= np.sort(wanted_BN, axis=1)[:, -10:-9] - 1e-5).mean() >= 0.95


def test_recall_is_measured_on_vectors_that_are_not_in_a_crowd_of_almost_copies(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    vectors_ND = vectors_for(range(3000), "1")
    vectors_ND[:2000] = vectors_ND[0] + 1e-4 * np.random.default_rng(0).standard_normal((2000, 32)).astype(np.float32)
    bench.commit([rows_of(range(3000), vectors_ND)])
    bench.index(factory="HNSW16")
    card = card_of(bench)
    assert card.nodes == 3000 and 60 <= card.quality.queries <= 140  # a third of 300


def test_where_a_graph_misses_its_recall_lists_are_built_and_the_card_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tlray")
    monkeypatch.setattr("tlray.search.neighbours.factory.FLAT_MAX_ROWS", 100)
    monkeypatch.setattr("tlray.search.neighbours.factory.HNSW_LINKS", 2)
    monkeypatch.setattr("tlray.search.neighbours.factory.HNSW_LEAST_LINKS", 2)
    monkeypatch.setattr("tlray.search.neighbours.recall.MAX_EF_SEARCH", 16)
    bench = Bench(tmp_path)
    bench.fill(3000)
    built = bench.index(recall_target=0.99)
    assert built["factory"].startswith("IVF") and built["recall_at_10"] >= 0.99
    assert any("HNSW2 reached a recall at 10 of 0." in reason for reason in card_of(bench).reasons)
    assert "instead" in caplog.text
    assert bench.index(recall_target=0.99)["action"] == "unchanged"
    assert bench.index(recall_target=0.99, factory="HNSW2", rebuild=True)["factory"] == "HNSW2"  # as the user names it


@pytest.mark.parametrize("factory", FACTORIES)
def test_an_all_zero_vector_has_a_cosine_of_zero_to_everything(
    factory: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tlray")
    bench = Bench(tmp_path)
    vectors_ND = vectors_for(range(1000), "1")
    vectors_ND[10:40] = 0
    (part,) = bench.commit([rows_of(range(1000), vectors_ND)])
    config = {"factory": factory, "rerank": "always"}
    bench.index(**config)
    assert "30 of 1000 rows have an all-zero vector" in caplog.text
    check(bench, 0.93)
    searcher = Searcher.open(str(bench.index_path))
    assert (searcher.card.nodes, searcher.card.zero_rows) == (970, 30)
    zero = set(uris_of(range(10, 40)))
    # All rows: those of a negative cosine come after those of none.
    (hits,) = searcher.search(vectors_for([5], "1"), 1000).to_lists()
    assert {hit["uri"] for hit in hits if hit["score"] == 0} == zero
    scores = [hit["score"] for hit in hits]
    assert scores == sorted(scores, reverse=True) and scores[0] > 0 > scores[-1]
    (hits,) = searcher.search(vectors_for([5], "1"), 50, Filter(prefixes=("file:///photos/train/00001",))).to_lists()
    assert {hit["uri"] for hit in hits} == set(uris_of(range(10, 20))) and {hit["score"] for hit in hits} == {0}
    # A query without a direction is as far from everything, and in a batch it leaves the others alone.
    queries_BD = np.stack([np.zeros(32, np.float32), vectors_ND[500]])
    nothing, found = searcher.search(queries_BD, 5).to_lists()
    assert len(nothing) == 5 and {hit["score"] for hit in nothing} == {0}
    assert found[0]["uri"] == uris_of(range(500, 501))[0]
    by_uri = searcher.search_uris(uris_of(range(12, 13)), 5).to_lists()[0]
    assert len(by_uri) == 5 and {hit["score"] for hit in by_uri} == {0} and uris_of(range(12, 13))[0] not in by_uri[0]["uri"]
    np.testing.assert_array_equal(searcher.vectors(np.array([12, 500]))[0], np.zeros(32))

    bench.commit([rows_of(range(2000, 2060), np.concatenate([np.zeros((10, 32), np.float32), vectors_for(range(50), "z")]))])
    assert bench.index(**config)["action"] == "updated"
    assert (card_of(bench).nodes, card_of(bench).zero_rows) == (1020, 40)
    check(bench, 0.93)
    bench.commit([], [part])
    bench.index(**config)
    assert (card_of(bench).nodes, card_of(bench).zero_rows) == (50, 10)
    assert len(Searcher.open(str(bench.index_path)).search(queries_BD, 70).to_lists()[1]) == 60


def test_a_table_of_nothing_but_zeros_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.commit([rows_of(range(20), np.zeros((20, 32), np.float32))])
    with pytest.raises(TableError, match=r"all 20 embeddings .* --metric l2"):
        bench.index()
    assert bench.index(metric="l2")["rows"] == 20
    (hits,) = Searcher.open(str(bench.index_path)).search(np.zeros((1, 32)), 5).to_lists()
    assert [hit["score"] for hit in hits] == [0] * 5


@pytest.mark.parametrize("factory", FACTORIES)
def test_exact_copies_are_duplicates_at_a_cosine_of_one(factory: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    vectors_ND = vectors_for(range(1500), "1")
    vectors_ND[600:1200] = vectors_ND[:600]
    vectors_ND[1200:1300] = 3 * vectors_ND[:100]  # another length, so the same direction
    vectors_ND[1300:1400] = 0
    bench.commit([rows_of(range(1500), vectors_ND)])
    bench.index(factory=factory, rerank="always", recall_target=0.99)
    result = result_of(tlray("duplicates", "--index", bench.index_path, "--cosine", 1, "--out", tmp_path / "g.parquet"))
    assert (result["groups"], result["pairs"], result["zero_vectors"]) == (600, 600 + 2 * 100, 100)
    assert result["rows_in_groups"] == 1300
    groups = pl.read_parquet(tmp_path / "g.parquet")["uri"].to_list()
    assert set(groups) == set(uris_of(range(1300)))
    every = result_of(tlray("duplicates", "--index", bench.index_path, "--cosine", 0.9))
    real_ND = np.delete(vectors_ND, np.s_[1300:1400], axis=0)
    wanted = (cosine_similarity(real_ND.astype(np.float64)) >= 0.9).sum() - len(real_ND)
    assert abs(every["pairs"] - wanted // 2) <= 0.01 * wanted


def test_thousands_of_copies_are_counted_without_a_search_for_each(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    vectors_ND = vectors_for(range(5000), "1")
    vectors_ND[:4500] = vectors_ND[0]
    bench.commit([rows_of(range(5000), vectors_ND)])
    bench.index()
    result = result_of(tlray("duplicates", "--index", bench.index_path, "--cosine", 1))
    assert (result["groups"], result["pairs"], result["first"][0]["size"]) == (1, 4500 * 4499 // 2, 4500)
