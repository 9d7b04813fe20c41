"""A service moves to new versions of its index while it answers."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.search.service.serving import serving
from tests.search.tables import Bench, exact, rows_for
from tlray.config import ServeConfig
from tlray.errors import IndexCorruptError
from tlray.search.service.backend.service import Service
from tlray.search.versions.card import read_card


def test_answers_stay_right_while_the_index_is_swapped_under_load(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fill(2000)
    bench.index(factory="Flat")
    uris, vectors_ND = bench.all()
    asked = vectors_ND[:50]
    truth = {1: [[uris[at] for at in row] for row in exact(asked, vectors_ND, 10)[0]]}
    with serving(bench.index_path, images=False) as (client, _):
        expected_versions = {1}
        stop, failures, seen = threading.Event(), [], []

        def ask(worker: int) -> None:
            at = worker
            while not stop.is_set():
                at = (at + 1) % len(asked)
                status, data = client("POST", "/api/search", {"queries": [{"vector": asked[at].tolist()}]})
                answer = json.loads(data) if status == 200 else {}
                seen.append((answer.get("version"), at, [hit["uri"] for hit in answer["answers"][0]] if answer else None))
                if status != 200:
                    failures.append((status, data))

        threads = [threading.Thread(target=ask, args=(worker,)) for worker in range(8)]
        for thread in threads:
            thread.start()
        wait_until(lambda: seen)
        for version in (2, 3):
            bench.commit([rows_for(range(version * 10_000, version * 10_000 + 100))])
            assert bench.index()["version"] == version
            uris, vectors_ND = bench.all()
            truth[version] = [[uris[at] for at in row] for row in exact(asked, vectors_ND, 10)[0]]
            expected_versions.add(version)
            wait_until(lambda version=version: seen[-1][0] == version or failures)
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert {version for version, _, _ in seen} == expected_versions
    wrong = [(version, at) for version, at, found in seen if set(found) != set(truth[version][at])]
    assert not wrong, wrong[:5]


def wait_until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.02)


def test_a_damaged_version_is_not_taken(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fill(100)
    bench.index()
    service = Service(ServeConfig(index=str(bench.index_path), images=False))
    assert asyncio.run(service.reload()) is False
    bench.commit([rows_for(range(200, 210))])
    bench.index()
    rows_file = bench.index_path / "files" / read_card(f"file://{bench.index_path}", 2).files["rows"].name
    good = rows_file.read_bytes()
    rows_file.write_bytes(good[:-1])
    with pytest.raises(IndexCorruptError):
        asyncio.run(service.reload())
    assert service.info().version == 1
    rows_file.write_bytes(good)
    assert asyncio.run(service.reload()) is True
    assert service.info().version == 2
