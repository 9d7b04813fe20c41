"""One small cluster: shards of an index, a table of queries, replicas of the service."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import ray

from tests.ray_cluster import free_ports
from tests.search.service.serving import TOKEN, Client
from tests.search.tables import Bench, rows_for, vectors_for
from tlray.config import SearchConfig, ServeConfig
from tlray.errors import ConfigError
from tlray.lake.table.parts import vector_column
from tlray.search.query.search import search
from tlray.search.query.searcher import Searcher

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=256 * 2**20, logging_level="WARNING")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("on_ray"))
    bench.fill(3000, part_rows=250)
    return bench


def test_shards_make_the_index_that_one_process_makes(bench: Bench, tmp_path: Path) -> None:
    queries_BD = vectors_for(range(100_000, 100_050), "query")
    hits, cards = [], []
    for shards in (1, 3):
        out = str(tmp_path / f"{shards}")
        bench.index(out=out, shards=shards, factory="PCA16,IVF16,SQ8")
        searcher = Searcher.open(out)
        hits.append(searcher.search(queries_BD, 10))
        cards.append(searcher.card)
    assert cards[0].quality.recall_at_10 == cards[1].quality.recall_at_10 and cards[0].parameters == cards[1].parameters
    np.testing.assert_allclose(hits[0].scores_BK, hits[1].scores_BK, atol=1e-6)
    assert np.mean(hits[0].positions_BK == hits[1].positions_BK) > 0.99  # equal scores in either order
    with pytest.raises(ConfigError, match="IVF"):
        bench.index(out=str(tmp_path / "graph"), shards=2, factory="HNSW8")


def test_shards_hold_each_vector_once_and_none_of_zeros(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    vectors_ND = vectors_for(range(2000), "1")
    vectors_ND[200:900] = vectors_ND[1500]  # copies across shards, the first of them far before the others
    vectors_ND[300:310] = 0
    parts = [rows_for(range(at, at + 250)) for at in range(0, 2000, 250)]
    for at, rows in enumerate(parts):
        parts[at] = rows.set_column(5, "embedding", vector_column(vectors_ND[at * 250 : at * 250 + 250], "full"))
    bench.commit(parts)
    searchers = []
    for shards in (1, 3):
        out = str(tmp_path / f"{shards}")
        bench.index(out=out, shards=shards, factory="IVF16,SQ8", rerank="always")
        searchers.append(Searcher.open(out))
    one, several = searchers
    assert one.card.nodes == several.card.nodes == 2000 - 10 - 690 and several.card.zero_rows == 10
    assert one.rows.table.equals(several.rows.table)
    assert one.card.parameters == several.card.parameters
    np.testing.assert_array_equal(one.vectors(np.arange(0, 2000, 7)), several.vectors(np.arange(0, 2000, 7)))
    queries_BD = vectors_for(range(100_000, 100_050), "query")
    hits = [searcher.search(queries_BD, 900) for searcher in searchers]
    np.testing.assert_allclose(hits[0].scores_BK, hits[1].scores_BK, atol=1e-6)


def test_a_table_of_queries_is_answered_by_workers_as_by_one_process(bench: Bench, tmp_path: Path) -> None:
    bench.index(factory="Flat")
    frames = []
    for workers in (0, 2):
        out = tmp_path / f"{workers}.parquet"
        given = SearchConfig(
            index=str(bench.index_path), queries=bench.table.uri, out=str(out), k=3, workers=workers, columns=("etag",)
        )
        assert search(given)["queries"] == 3000
        frames.append(pl.read_parquet(out))
    assert len(frames[1]) == 9000 and frames[0].equals(frames[1]) and frames[1]["etag"].to_list() == ["1"] * 9000


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_replicas_answer_alike_and_follow_the_index(bench: Bench, tmp_path: Path) -> None:
    bench.index(factory="Flat")
    from tlray.search.service.replicas import serve_on_ray  # Ray Serve's own deprecations are none of ours

    (tmp_path / "token").write_text(TOKEN)
    config = ServeConfig(
        index=str(bench.index_path),
        port=free_ports(1)[0],
        replicas=2,
        images=False,
        reload_seconds=0.3,
        timeout_seconds=300,
        token_file=str(tmp_path / "token"),
    )
    stop, results = threading.Event(), []
    thread = threading.Thread(target=lambda: results.append(serve_on_ray(config, f"file://{bench.index_path}", stop)))
    thread.start()
    try:
        client, body = wait_for(config.port, thread), {"queries": [{"id": 7}], "k": 5}
        expected = Searcher.open(str(bench.index_path)).search_rows(np.array([7]), 5).to_lists()[0]
        for _ in range(20):
            answer = client.json("POST", "/api/search", body)["answers"][0]
            assert [hit["uri"] for hit in answer] == [hit["uri"] for hit in expected]
        assert Client(client.port, "wrong")("POST", "/api/search", body)[0] == 401
        assert client("POST", "/api/search", {"queries": []})[0] == 422
        bench.commit([rows_for(range(9000, 9010))])
        version = bench.index()["version"]
        deadline = time.monotonic() + 300
        seen: list[int] = []
        while seen[-8:] != [version] * 8 and time.monotonic() < deadline:
            seen.append(json.loads(client("GET", "/readyz")[1])["version"])
            time.sleep(0.05)
        assert seen[-8:] == [version] * 8 and set(seen) <= {version - 1, version}
    finally:
        stop.set()
        thread.join(300)
    assert results and results[0]["replicas"] == 2


def wait_for(port: int, thread: threading.Thread) -> Client:
    """Until a replica answers; before, Ray's proxy says 404 or nothing at all."""
    client, deadline = Client(port), time.monotonic() + 300
    while time.monotonic() < deadline and thread.is_alive():
        with contextlib.suppress(OSError):
            if client("GET", "/healthz")[0] == 200:
                return client
        time.sleep(0.2)
    raise AssertionError("the replicas did not start")
