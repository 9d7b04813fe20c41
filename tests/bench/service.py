"""The service under load and under bad requests: real processes on loopback, Python clients.

`load`: requests from many connections at once while the index is swapped twice; every answer is held against FAISS Flat over
the rows of the version that it names. `bare_ms` is one such search by FAISS itself, on one thread, without a network.

`fuzz`: mutated bodies, the image corpora where they are, a decompression bomb, paths that climb, wrong tokens. Anything but 200
and 4xx is an error; the server's memory is read from /proc before, half way and after.

`hostile`: requests with half-sent heads, trickled and huge bodies, bombs, wrong JSON and clients that leave, many at once, with
a time limit of 1 s; threads and memory are watched meanwhile, and afterwards it must answer as before.
"""

import argparse
import http.client
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from PIL import Image

from tests.bench.harness import finish
from tests.bench.service_attacks import Attacker, Watch, allowed_threads
from tests.corpora import files
from tests.photos import RECIPE, photo, result_of, tlray, write_photos
from tests.search.tables import Bench, rows_for
from tlray.search.query.searcher import Searcher

TOKEN = "bench-token"
NEW_ROWS = 100
MOST_SECONDS = 60


@contextmanager
def served(index: Path, folder: Path, *flags: str) -> Iterator[tuple[int, int]]:
    """`tlray serve` in a process of its own: its port and its process id."""
    (folder / "token").write_text(TOKEN)
    command = [sys.executable, "-m", "tlray", "serve", "--index", str(index), "--port", "0"]
    with subprocess.Popen(
        [*command, "--token-file", str(folder / "token"), *flags], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "http://" in line)
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        assert found is not None, line
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            yield int(found[1]), process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


class Connection:
    """One that is kept, and opened again where the server closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def __call__(self, method: str, path: str, body: bytes | None, token: str = TOKEN) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        for last in (False, True):
            try:
                self._open.request(method, path, body, headers)
                answer = self._open.getresponse()
                return answer.status, answer.read()
            except (ConnectionError, http.client.HTTPException):
                # A refusal before the body was read closes the connection, perhaps while we still send.
                self._open.close()
                if last:
                    raise
        raise AssertionError


def load(rows: int, dimensions: int, requests: int, concurrency: int) -> dict[str, Any]:
    """Requests at once while the index is swapped twice."""
    folder = Path(tempfile.mkdtemp(prefix="tlray-bench-"))
    bench = Bench(folder, dimensions)
    bench.fill(rows, part_rows=5000)
    bench.index(factory="Flat")
    rng = np.random.default_rng(0)
    queries_BD = rng.standard_normal((200, dimensions)).astype(np.float32)
    faiss.normalize_L2(queries_BD)
    bodies = [json.dumps({"queries": [{"vector": one.tolist()}], "k": 10}).encode() for one in queries_BD]
    truth, flat = {1: truth_of(bench, queries_BD)[0]}, truth_of(bench, queries_BD)[1]
    answers: list[tuple[float, int, int, frozenset[str]]] = []
    done = threading.Event()

    with served(bench.index_path, folder, "--no-images", "--reload-seconds", "0.2") as (port, _):

        def ask(worker: int) -> None:
            connection, at = Connection(port), worker
            while not done.is_set():
                at = (at + 1) % len(bodies)
                began = time.perf_counter()
                status, data = connection("POST", "/api/search", bodies[at])
                taken = time.perf_counter() - began
                answer = json.loads(data) if status == 200 else {"version": -status, "answers": [[]]}
                answers.append((taken, answer["version"], at, frozenset(hit["uri"] for hit in answer["answers"][0])))

        began = time.perf_counter()
        threads = [threading.Thread(target=ask, args=(worker,)) for worker in range(concurrency)]
        for thread in threads:
            thread.start()
        for version in (2, 3):
            _wait(lambda version=version: len(answers) >= requests * (version - 1) // 3, began)
            bench.commit([rows_for(range(version * 100_000, version * 100_000 + NEW_ROWS), dimensions=dimensions)])
            bench.index()
            _wait(lambda version=version: any(one[1] == version for one in answers[-concurrency:]), began)
        _wait(lambda: len(answers) >= requests, began)
        done.set()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
    for version in (2, 3):
        truth[version] = truth_of(bench, queries_BD, version)[0]
    failed = [version for _, version, _, _ in answers if version < 0]
    wrong = [1 for _, version, at, found in answers if version > 0 and found != truth[version][at]]
    milliseconds = np.array([taken for taken, *_ in answers]) * 1000
    faiss.omp_set_num_threads(1)
    began = time.perf_counter()
    for at in range(len(queries_BD)):
        flat.search(queries_BD[at : at + 1], 10)
    bare = (time.perf_counter() - began) * 1000 / len(queries_BD)
    return {
        "what": f"load, {concurrency} at once",
        "requests": len(answers),
        "failed": len(failed),
        "wrong": len(wrong),
        "versions": len({version for _, version, _, _ in answers}),
        "p50_ms": float(np.percentile(milliseconds, 50)),
        "p99_ms": float(np.percentile(milliseconds, 99)),
        "requests_per_second": len(answers) / seconds,
        "bare_ms": bare,
    }


def _wait(condition: Any, began: float) -> None:
    while not condition():
        assert time.perf_counter() - began < MOST_SECONDS, "too slow, or a version never appeared"
        time.sleep(0.01)


def truth_of(bench: Bench, queries_BD: np.ndarray, version: int | None = None) -> tuple[list[frozenset[str]], Any]:
    """FAISS Flat over the table's rows, and it; of an older version, without the rows that came later."""
    uris, vectors_ND = bench.all()
    if version is not None:
        keep = [at for at, uri in enumerate(uris) if int(uri[-10:-4]) < version * 100_000 + NEW_ROWS]
        uris, vectors_ND = [uris[at] for at in keep], vectors_ND[keep]
    unit_ND = np.array(vectors_ND)
    faiss.normalize_L2(unit_ND)
    flat = faiss.IndexFlatL2(unit_ND.shape[1])
    flat.add(unit_ND)
    return [frozenset(uris[at] for at in row) for row in flat.search(queries_BD, 10)[1]], flat


def bad_requests(count: int, dimensions: int, good_token: str) -> Iterator[tuple[str, str, bytes | None, str]]:
    """Method, path, body and token of requests that are wrong in one way or another."""
    rng = random.Random(0)
    good = json.dumps({"queries": [{"vector": [0.5] * dimensions}, {"id": 1}], "k": 3, "labels": ["cat"]}).encode()
    words = json.dumps({"queries": [{"text": "a red bicycle"}, {"text": "猫"}], "prefixes": ["file://"]}).encode()
    image = photo(5)
    bomb = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(bomb, "PNG")
    try:
        corpus = [path for path in files() if path.stat().st_size < 150_000]
    except pytest.skip.Exception:
        corpus = []
    climbs = [
        "/static/../__init__.py",
        "/static/%2e%2e/__init__.py",
        "/static//etc/passwd",
        "/api/thumbnail/..%2f..%2fetc%2fpasswd",
    ]
    for number in range(count):
        kind = number % 20
        if kind == 0:
            yield "POST", "/api/search/image", bomb.getvalue(), good_token
        elif kind == 1:
            yield "GET", rng.choice(climbs), None, good_token
        elif kind == 2:
            yield "POST", "/api/search", good, "wrong"
        elif kind == 3:
            yield "GET", f"/api/thumbnail/{rng.randrange(10**6, 10**12)}", None, good_token
        elif kind < 8 and corpus:
            yield "POST", "/api/search/image?k=1", rng.choice(corpus).read_bytes(), good_token
        else:
            path, body = rng.choice([("/api/search", good), ("/api/search", words), ("/api/search/image?k=2", image)])
            mutated = bytearray(body)
            for _ in range(rng.randint(1, 8)):
                mutated[rng.randrange(len(mutated))] = rng.randrange(256)
            yield "POST", path, bytes(mutated[: rng.randint(1, len(mutated))]), good_token


def fuzz(count: int, concurrency: int) -> dict[str, Any]:
    """Bad requests, and the server's memory."""
    folder = Path(tempfile.mkdtemp(prefix="tlray-bench-"))
    write_photos(folder / "photos", 30)
    source = ["--source.uri", folder / "photos", "--source.labels", "folder"]
    result_of(tlray("extract", "--local", *source, *RECIPE, "--table", folder / "table"))
    result_of(tlray("index", "--table", folder / "table", "--out", folder / "index"))
    dimensions = Searcher.open(str(folder / "index")).card.dimensions
    statuses: Counter[int] = Counter()
    memory = []
    connections = threading.local()
    with served(folder / "index", folder, "--max-concurrency", "1000") as (port, pid):

        def send(request: tuple[str, str, bytes | None, str]) -> int:
            if not hasattr(connections, "one"):
                connections.one = Connection(port)
            status: int = connections.one(*request)[0]
            return status

        requests = bad_requests(count, dimensions, TOKEN)
        with ThreadPoolExecutor(concurrency) as threads:
            for share in (count // 10, count // 2 - count // 10, count - count // 2):
                taken = [next(requests) for _ in range(share)]
                statuses.update(threads.map(send, taken))
                memory.append(resident_bytes(pid))
    return {
        "what": "fuzz",
        "requests": sum(statuses.values()),
        "ok": statuses[200],
        "refused": sum(number for status, number in statuses.items() if 400 <= status < 500),
        "errors": sum(number for status, number in statuses.items() if status >= 500),
        "memory_mb": [round(one / 1e6) for one in memory],
        "growth": round(memory[-1] / memory[1], 3),
    }


def hostile(count: int, at_once: int) -> dict[str, Any]:
    """Hostile requests; the server's threads and memory, and whether it answers as before."""
    folder = Path(tempfile.mkdtemp(prefix="tlray-bench-"))
    write_photos(folder / "photos", 30)
    source = ["--source.uri", folder / "photos", "--source.labels", "folder"]
    result_of(tlray("extract", "--local", *source, *RECIPE, "--table", folder / "table"))
    result_of(tlray("index", "--table", folder / "table", "--out", folder / "index"))
    question, image = b'{"queries":[{"id":1}],"k":5}', photo(3)
    with served(folder / "index", folder, "--timeout-seconds", "1") as (port, pid):
        attacker = Attacker(port, TOKEN)
        expected = patiently(port, "/api/search", question), patiently(port, "/api/search/image?k=5", image)
        with Watch(pid) as watch:
            began = time.perf_counter()
            answers = attacker.attack(count, at_once)
            seconds = time.perf_counter() - began
            same = expected == (patiently(port, "/api/search", question), patiently(port, "/api/search/image?k=5", image))
            end_bytes = watch.now_bytes
    for answer, number in sorted(answers.items()):
        print(f"{number:6d} {answer}", file=sys.stderr)
    return {
        "what": f"hostile, {at_once} at once",
        "requests": sum(answers.values()),
        "good_answered": answers["good: 200"],
        "good_refused": sum(answers[f"good: {status}"] for status in (408, 429, 504)),
        "server_errors": sum(number for answer, number in answers.items() if answer.endswith((": 500", ": 503"))),
        "answers_as_before": same,
        "seconds": seconds,
        "threads": watch.most_threads,
        "threads_start": watch.start_threads,
        "threads_allowed": allowed_threads(),
        "memory_mb": round(watch.most_bytes / 1e6),
        "memory_start_mb": round(watch.start_bytes / 1e6),
        "memory_end_mb": round(end_bytes / 1e6),
        "growth": round(watch.most_bytes / watch.start_bytes, 3),
    }


def patiently(port: int, path: str, body: bytes) -> list[str]:
    """URIs of the answer, once the service has room for the question."""
    began = time.perf_counter()
    while True:
        status, data = Connection(port)("POST", path, body)
        if status == 200:
            return [hit["uri"] for hit in json.loads(data)["answers"][0]]
        assert time.perf_counter() - began < MOST_SECONDS, (status, data)
        time.sleep(0.1)


def resident_bytes(pid: int) -> int:
    """Of a process, now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", nargs="*", choices=("load", "fuzz", "hostile"), default=["load", "fuzz", "hostile"])
    parser.add_argument("--quick", action="store_true", help="few requests")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--bodies", type=int, default=10_000)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.dimensions, arguments.requests, arguments.bodies = 2000, 32, 300, 300
    result = {}
    for what in arguments.steps:
        if what == "load":
            result[what] = load(arguments.rows, arguments.dimensions, arguments.requests, arguments.concurrency)
        elif what == "fuzz":
            result[what] = fuzz(arguments.bodies, 4)
        else:
            result[what] = hostile(arguments.bodies, 2 * arguments.concurrency)
        print(json.dumps(result[what]))
    finish(result, [next(iter(result.values()))])


if __name__ == "__main__":
    main()
