"""Building an index and following its table, held against NumPy over the table's own rows."""

import json
import logging
import os
from pathlib import Path

import faiss
import numpy as np
import pytest

from tests.search.tables import Bench, exact, recall, rows_for, vectors_for
from tlray.config import SearchConfig
from tlray.errors import (
    ConcurrentWriteError,
    ConfigError,
    IndexCorruptError,
    IndexMissingError,
    RecipeMismatchError,
    TableError,
)
from tlray.lake.table.maintenance import optimize
from tlray.lake.table.parts import vector_column
from tlray.lake.table.table import Table
from tlray.predictor import Output
from tlray.search.query.search import search
from tlray.search.query.searcher import Searcher
from tlray.search.versions.card import publish, read_card, versions

FACTORIES = ["Flat", "HNSW16", "IVF32,Flat", "PCA16,HNSW16", "OPQ2_8,IVF16,PQ2x4", "IVF16,SQ4", "IVF64_HNSW8,Flat"]


def found(searcher: Searcher, queries_BD: np.ndarray, k: int = 10) -> list[list[str]]:
    return [[hit["uri"] for hit in hits] for hits in searcher.search(queries_BD, k).to_lists()]


def recall_of(bench: Bench, queries_BD: np.ndarray, metric: str = "cosine") -> float:
    uris, vectors_ND = bench.all()
    wanted_BK, _ = exact(queries_BD, vectors_ND, 10, metric)
    searcher = Searcher.open(str(bench.index_path))
    return recall(found(searcher, queries_BD), [[uris[at] for at in row] for row in wanted_BK])


@pytest.fixture(scope="module")
def queries_BD() -> np.ndarray:  # noqa: N802  # a tensor
    return vectors_for(range(100_000, 100_200), "query")


@pytest.mark.parametrize("factory", FACTORIES)
def test_each_family_reaches_its_target_and_stays_true(factory: str, tmp_path: Path, queries_BD: np.ndarray) -> None:
    bench = Bench(tmp_path)
    parts = bench.fill(4000)
    built = bench.index(factory=factory)
    assert (built["action"], built["rows"], built["version"]) == ("built", 4000, 1)
    assert built["recall_at_10"] >= 0.95
    assert recall_of(bench, queries_BD) >= 0.93
    assert bench.index()["action"] == "unchanged"

    # 1,000 rows are rewritten: 20 gone, 20 with other bytes; 30 new ones.
    kept, changed, new = range(40, 1000), range(20, 40), range(8000, 8030)
    bench.commit([rows_for(kept), rows_for(changed, "2"), rows_for(new)], parts[:1])
    updated = bench.index()
    assert updated["action"] == "updated", updated
    assert (updated["added"], updated["removed"], updated["moved"]) == (50, 40, 960)
    searcher = Searcher.open(str(bench.index_path))
    uris = set(bench.all()[0])
    assert set(searcher.rows.table["uri"].to_pylist()) == uris
    everything = {uri for hits in found(searcher, vectors_for(range(4000), "1"), 40) for uri in hits}
    assert everything <= uris
    for numbers, etag in ((changed, "2"), (new, "1")):
        first = [hits[0] for hits in found(searcher, vectors_for(numbers, etag), 1)]
        expected = [f"file:///photos/train/{number:06d}.jpg" for number in numbers]
        assert np.mean([one == other for one, other in zip(first, expected, strict=True)]) >= 0.95
    after = recall_of(bench, queries_BD)
    assert after >= 0.93
    if not factory.startswith("OPQ"):  # slow to train
        assert bench.index(factory=factory, rebuild=True)["action"] == "rebuilt"
        assert abs(after - recall_of(bench, queries_BD)) <= 0.03  # 200 queries


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat", "IVF8,SQ4"])
def test_scores_are_the_metric(metric: str, factory: str, tmp_path: Path, queries_BD: np.ndarray) -> None:
    bench = Bench(tmp_path)
    bench.fill(2000)
    bench.index(factory=factory, metric=metric, rerank="always")
    uris, vectors_ND = bench.all()
    hits = Searcher.open(str(bench.index_path)).search(queries_BD, 10)
    _, all_scores_BN = exact(queries_BD, vectors_ND, 2000, metric)
    order_BN, _ = exact(queries_BD, vectors_ND, 2000, metric)
    for row, answer in enumerate(hits.to_lists()):
        score_of = {uris[at]: score for at, score in zip(order_BN[row], all_scores_BN[row], strict=True)}
        np.testing.assert_allclose(
            [hit["score"] for hit in answer], [score_of[hit["uri"]] for hit in answer], rtol=1e-3, atol=1e-4
        )
    assert recall_of(bench, queries_BD, metric) >= 0.93


def test_compaction_only_moves_rows(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fill(600, part_rows=100)
    bench.index(factory="IVF8,Flat")
    optimize(Table.open(bench.table.uri))
    assert len(Table.open(bench.table.uri).parts()) == 1
    moved = bench.index()
    assert (moved["action"], moved["added"], moved["removed"], moved["moved"]) == ("updated", 0, 0, 600)


def test_a_changed_label_is_followed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (part,) = bench.fill(500)
    bench.index()
    rows = rows_for(range(500))
    relabelled = rows.set_column(2, "label", [["new"] * 500])
    bench.commit([relabelled], [part])
    assert bench.index()["moved"] == 500
    assert Searcher.open(str(bench.index_path)).rows.labels == {"new": 500}


def test_growth_dead_vectors_and_a_higher_target_rebuild(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="tlray")
    bench = Bench(tmp_path)
    parts = bench.fill(1000, part_rows=250)
    bench.index(factory="HNSW8")
    bench.commit([], parts[:1])
    assert bench.index()["action"] == "rebuilt"
    assert "would be dead" in caplog.text
    assert read_card(bench.config().out and f"file://{bench.index_path}").dead == 0
    bench.commit([rows_for(range(5000, 7000))])
    assert bench.index()["action"] == "rebuilt"
    assert "more than 2 times" in caplog.text


@pytest.mark.parametrize(("new", "target"), [(200, 0.97), (1500, 0.9)])
def test_a_recall_under_the_target_rebuilds(new: int, target: float, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="tlray")
    bench = Bench(tmp_path)
    bench.fill(2000)
    bench.index(factory="IVF64,Flat", recall_target=target)
    # New rows in places where the build saw none: their neighbours are spread over lists made for others. 200 are few enough
    # to go beside the FAISS file.
    rows = rows_for(range(10_000, 10_000 + new))
    strange = np.random.default_rng(0).standard_normal((new, bench.dimensions)).astype(np.float32)
    bench.commit([rows.set_column(5, "embedding", vector_column(strange, "half"))])
    result = bench.index(recall_target=target)
    assert result["action"] == "rebuilt" and result["recall_at_10"] >= target
    assert "recall fell" in caplog.text


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fill(300)
    plan = bench.index(dry_run=True)
    assert (plan["action"], plan["factory"], plan["rows"]) == ("build", "Flat", 300)
    assert not bench.index_path.exists()
    bench.index()
    bench.commit([rows_for(range(900, 910))])
    assert bench.index(dry_run=True)["added"] == 10
    assert versions(f"file://{bench.index_path}") == [1]


def test_every_byte_of_every_file_is_guarded(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fill(300)
    bench.index(factory="IVF4,SQ4", rerank="always")
    files = sorted(path for path in bench.index_path.rglob("*") if path.is_file())
    kinds = sorted(path.name.split("-")[0] for path in files)
    assert kinds == ["00000000000000000001.json", "centres", "faiss", "recipe", "rows", "vectors"]
    rng = np.random.default_rng(0)
    for path in files:
        good = path.read_bytes()
        for at in [0, len(good) - 1, *rng.integers(0, len(good), 40).tolist()]:
            bad = bytearray(good)
            bad[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(bad)
            with pytest.raises(IndexCorruptError):
                Searcher.open(str(bench.index_path))
        path.write_bytes(good[:-1])
        with pytest.raises(IndexCorruptError):
            Searcher.open(str(bench.index_path))
        path.write_bytes(good)
    Searcher.open(str(bench.index_path))
    (faiss_file,) = bench.index_path.glob("files/faiss-*")
    faiss_file.unlink()
    with pytest.raises(IndexCorruptError, match="gone"):
        Searcher.open(str(bench.index_path))
    assert bench.index(rebuild=True)["action"] == "rebuilt"


def test_another_recipe_metric_or_factory_is_refused(tmp_path: Path) -> None:
    bench, other = Bench(tmp_path / "a"), Bench(tmp_path / "b", pool="max")
    bench.fill(100)
    other.fill(100)
    bench.index()
    with pytest.raises(RecipeMismatchError, match="another place"):
        other.index(out=str(bench.index_path))
    with pytest.raises(ConfigError, match="--rebuild"):
        bench.index(metric="l2")
    with pytest.raises(ConfigError, match="--rebuild"):
        bench.index(factory="HNSW8")
    searcher = Searcher.open(str(bench.index_path))
    with pytest.raises(RecipeMismatchError):
        searcher.check_recipe(other.table.recipe_file.recipe_id)


def test_a_graph_is_linked_from_as_many_candidates_as_asked_for_and_stays_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fill(300)
    with pytest.raises(ConfigError, match=r"HNSW graphs.*Flat"):
        bench.index(ef_construction=200)
    bench.index(factory="HNSW8", ef_construction=200)
    bench.commit([rows_for(range(300, 340), dimensions=bench.dimensions)])
    for action in ("updated", "rebuilt"):
        assert bench.index(factory="HNSW8", ef_construction=200, rebuild=action == "rebuilt")["action"] == action
        name = read_card(f"file://{bench.index_path}").files["faiss"].name
        made = faiss.read_index(str(bench.index_path / "files" / name))
        assert made.hnsw.efConstruction == 200
    assert bench.index()["action"] == "unchanged"
    with pytest.raises(ConfigError, match=r"200.*--rebuild"):
        bench.index(ef_construction=100)


@pytest.mark.parametrize("factory", ["NoSuchThing", "IDMap,Flat", "IVF4,Flat,RFlat", "OPQ7_32,IVF4,PQ7"])
def test_a_bad_factory_is_refused_by_name(factory: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fill(100)
    with pytest.raises(ConfigError, match="factory"):
        bench.index(factory=factory)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with pytest.raises(TableError, match="no rows"):
        bench.index()
    with pytest.raises(IndexMissingError):
        Searcher.open(str(tmp_path / "nothing"))
    parts = bench.fill(50)
    bench.index()
    with pytest.raises(IndexMissingError, match="no version 7"):
        Searcher.open(str(bench.index_path), 7)
    with pytest.raises(ConfigError, match="column"):
        bench.index(column="other")
    bench.commit([], parts)
    with pytest.raises(TableError, match="no embeddings any more"):
        bench.index()


def test_a_table_of_predictions_or_a_table_for_an_index_is_told_from_what_is_wanted(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fill(50)
    bench.index()
    output = Output(model="m", column="embedding", task="single", classes=("a", "b"), top_k=1, threshold=0.5)
    recipe = bench.table.recipe_file.model_copy(update={"output": output})
    predictions = Table.create(f"file://{tmp_path}/predictions", recipe)
    with pytest.raises(TableError, match=r"predictions is a table of predictions .*--embeddings"):
        bench.index(table=predictions.uri, out=str(tmp_path / "other"))
    queries = SearchConfig(index=str(bench.index_path), queries=predictions.uri, out=str(tmp_path / "answers.parquet"))
    with pytest.raises(TableError, match=r"predictions is a table of predictions .*--embeddings"):
        search(queries)
    with pytest.raises(IndexMissingError, match="this is a table"):
        Searcher.open(bench.table.uri)
    with pytest.raises(ConfigError, match="a place of its own for the index"):
        bench.index(out=bench.table.uri)


def test_of_two_publishers_one_wins(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fill(50)
    bench.index()
    uri = f"file://{bench.index_path}"
    card = read_card(uri)
    publish(uri, card)  # the same bytes: a retry after a lost answer
    with pytest.raises(ConcurrentWriteError):
        publish(uri, card.model_copy(update={"created": "another"}))


def test_what_a_killed_build_left_goes_once_it_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    bench.fill(300)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("tlray.search.versions.publish.publish", killed)
        bench.index()
    files = bench.index_path / "files"
    left = {path.name for path in files.iterdir()}
    assert {name.partition("-")[0] for name in left} == {"faiss", "rows", "recipe"}
    bench.commit([rows_for(range(900, 910))])
    bench.index()
    named = {file.name for file in read_card(f"file://{bench.index_path}").files.values()}
    assert {path.name for path in files.iterdir()} == left | named  # they may be of a build under way

    for path in files.iterdir():
        os.utime(path, (0, 0))
    assert bench.index()["action"] == "unchanged"
    assert {path.name for path in files.iterdir()} == named
    Searcher.open(str(bench.index_path))
    # A build that stores the same bytes again makes them young: until its card is there, nobody deletes them.
    bench.index(rebuild=True)
    assert min(path.stat().st_mtime for path in files.iterdir()) > 0


def test_old_versions_go_and_readers_keep_what_they_have(tmp_path: Path, queries_BD: np.ndarray) -> None:
    bench = Bench(tmp_path)
    bench.fill(300)
    bench.index(rerank="always", factory="IVF4,SQ4")
    reader = Searcher.open(str(bench.index_path))
    before = found(reader, queries_BD)
    for step in range(3):
        bench.commit([rows_for(range(1000 + step * 10, 1010 + step * 10))])
        bench.index()
    assert versions(f"file://{bench.index_path}") == [3, 4]
    cards = [json.loads(path.read_text()) for path in (bench.index_path / "versions").iterdir()]
    named = {file["name"] for card in cards for file in card["files"].values()}
    assert {path.name for path in (bench.index_path / "files").iterdir()} == named
    assert found(reader, queries_BD) == before
    assert reader.table_version() == reader.card.table_version + 3
