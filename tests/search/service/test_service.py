"""The service as clients see it: a real server on loopback, real photographs, and everything that a client may send wrongly."""

import asyncio
import http.client
import io
import json
import resource
import signal
import socket
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn
from PIL import Image

from tests.bench.service import bad_requests
from tests.photos import RECIPE, error_of, photo, result_of, start_tlray, tlray, write_photos
from tests.search.tables import Bench, exact, rows_for
from tlray.config import ServeConfig
from tlray.errors import ImageError, IndexCorruptError
from tlray.lake.storage.open import open_store
from tlray.search.service.backend.map import layout, principal_components
from tlray.search.service.backend.service import Service
from tlray.search.service.backend.thumbnails import Thumbnails
from tlray.search.service.web.app import guarded, make_app, read_token
from tlray.search.versions.card import read_card

TOKEN = "correct-horse"


class Client:
    """Plain HTTP, one connection a request."""

    def __init__(self, port: int, token: str | None = TOKEN) -> None:
        self.port, self.token = port, token

    def __call__(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        given = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if isinstance(body, (dict, list)):
            body, given["Content-Type"] = json.dumps(body).encode(), "application/json"
        try:
            connection.request(method, path, body, given | headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def json(self, method: str, path: str, body: object = None) -> dict:
        status, data = self(method, path, body)
        assert status == 200, (status, data)
        return json.loads(data)


@contextmanager
def serving(index: Path, **changes: object) -> Iterator[tuple[Client, Service]]:
    """A server in a thread of this process, which waits for a slow machine as well."""
    config = ServeConfig(**({"index": str(index), "reload_seconds": 0.2, "timeout_seconds": 300} | changes))
    service = Service(config)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    app = guarded(make_app(service), service, config, TOKEN)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Client(listener.getsockname()[1]), service
    finally:
        server.should_exit = True
        thread.join(300)
        listener.close()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder / "photos", 30)
    (folder / "photos" / "secret.txt").write_text("not an image")
    source = ["--source.uri", folder / "photos", "--source.labels", "folder", "--source.include", "**/*.jpg"]
    result_of(tlray("extract", "--local", *source, *RECIPE, "--table", folder / "table"))
    result_of(tlray("index", "--table", folder / "table", "--out", folder / "index"))
    return folder


@pytest.fixture(scope="module")
def client(photos: Path) -> Iterator[Client]:
    limits = {"max_body_bytes": 200_000, "max_image_pixels": 1_000_000, "max_k": 50, "max_batch": 8}
    with serving(photos / "index", **limits) as (client, _):
        yield client


def test_an_image_is_found_by_itself_its_row_and_its_label(client: Client, photos: Path) -> None:
    path = photos / "photos" / "dog" / "00004.jpg"
    answer = client.json("POST", "/api/search/image?k=5", path.read_bytes())
    (hits,) = answer["answers"]
    assert hits[0]["uri"] == f"file://{path}" and hits[0]["score"] > 0.9999 and answer["metric"] == "cosine"
    queries = [{"id": hits[0]["id"]}, {"uri": hits[0]["uri"]}, {"label": "dog"}]
    by_id, by_uri, by_label = client.json("POST", "/api/search", {"queries": queries, "k": 4})["answers"]
    assert by_id == by_uri
    assert [hit["uri"] for hit in by_id] == [hit["uri"] for hit in hits[1:]]
    assert len(by_label) == 4
    assert {
        hit["label"] for hit in client.json("POST", "/api/search/image?k=9&label=cat", path.read_bytes())["answers"][0]
    } == {"cat"}
    assert len(client.json("GET", "/api/random?count=7&label=cat")) == 7


def test_the_index_its_map_and_its_documents(client: Client) -> None:
    info = client.json("GET", "/api/index")
    assert (info["rows"], info["labels"], info["images"]) == (30, {"cat": 15, "dog": 15}, True)
    points = client.json("GET", "/api/map")
    assert len(points) == 30 and all(-1 <= point["x"] <= 1 and -1 <= point["y"] <= 1 for point in points)
    paths = client.json("GET", "/openapi.json")["paths"]
    assert {"/api/search", "/api/search/image", "/api/index", "/api/random", "/api/map", "/api/thumbnail/{row_id}"} == set(
        paths
    )
    status, text = client("GET", "/metrics")
    assert status == 200 and b'tlray_requests_total{route="/api/index",status="200"}' in text
    assert client.json("GET", "/readyz") == {"status": "ready", "version": 1}
    for path in ("/", "/static/app.js", "/static/style.css", "/static/map.js", "/healthz", "/docs"):
        assert Client(client.port, None)("GET", path)[0] == 200, path


def test_a_layout_keeps_clusters_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """By principal components, and by UMAP where that is installed; here a stand-in for it, as its compiler takes 20 s."""
    rng = np.random.default_rng(0)
    centres_CD = 6 * rng.standard_normal((8, 64))
    labels_N = np.arange(400) % 8
    vectors_ND = centres_CD[labels_N] + rng.standard_normal((400, 64))

    class Umap:
        def __init__(self, **given: object) -> None:
            assert given["random_state"] is not None  # the same map every time

        def fit_transform(self, reduced_ND: np.ndarray) -> np.ndarray:
            # What UMAP is given still has the neighbours.
            squared_NN = ((reduced_ND[:, None] - reduced_ND[None]) ** 2).sum(axis=2) + np.diag(np.full(400, np.inf))
            assert (labels_N[squared_NN.argmin(axis=1)] == labels_N).all()
            return 7 + np.stack([labels_N % 3, labels_N // 3], axis=1) + 0.1 * rng.standard_normal((400, 2))

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Umap))
    for places_N2, least in ((principal_components(vectors_ND), 0.6), (layout(vectors_ND), 0.95)):
        assert places_N2.shape == (400, 2) and np.abs(places_N2).max() == pytest.approx(1)
        squared_NN = ((places_N2[:, None] - places_N2[None]) ** 2).sum(axis=2) + np.diag(np.full(400, np.inf))
        assert (labels_N[squared_NN.argmin(axis=1)] == labels_N).mean() >= least
    monkeypatch.setitem(sys.modules, "umap", None)
    np.testing.assert_array_equal(layout(vectors_ND), principal_components(vectors_ND))


def test_thumbnails_are_of_rows_only(client: Client) -> None:
    status, data = client("GET", "/api/thumbnail/3")
    assert status == 200 and max(Image.open(io.BytesIO(data)).size) <= 320
    for name in ("30", "-1", "x", "99999999999999999999", "../secret.txt", "file:///etc/passwd", "%2e%2e%2fsecret.txt"):
        assert client("GET", f"/api/thumbnail/{name}")[0] in (404, 422), name
    for path in (
        "/static/../web.py",
        "/static/%2e%2e/web.py",
        "/static//etc/passwd",
        "/../../etc/passwd",
        "/static/..%2fweb.py",
    ):
        status, data = client("GET", path)
        assert status in (400, 404) and b"import" not in data and b"root:" not in data, path


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_thumbnails_of_images_inside_containers(kind: str, tmp_path: Path) -> None:
    shard = tmp_path / f"shard.{kind}"
    images = [photo(number) for number in range(5)]
    if kind == "tar":
        with tarfile.open(shard, "w") as archive:
            for number, data in enumerate(images):
                info = tarfile.TarInfo(f"cat/{number}.jpg")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        names = [f"cat/{number}.jpg" for number in range(5)]
    else:
        pq.write_table(pa.table({"image": images}), shard)
        names = [str(number) for number in range(5)]
    info_of = open_store(shard.as_uri()).stat(shard.as_uri())
    assert info_of is not None
    thumbnails = Thumbnails(max_pixels=10**6)
    for at in (3, 0, 4):
        shown = Image.open(io.BytesIO(thumbnails.get(f"{shard.as_uri()}#{names[at]}", info_of.etag))).convert("RGB")
        original = Image.open(io.BytesIO(images[at])).convert("RGB")
        assert shown.size == original.size
        assert np.abs(np.asarray(shown, float) - np.asarray(original, float)).mean() < 4
    with pytest.raises(ImageError):
        thumbnails.get(f"{shard.as_uri()}#none", info_of.etag)
    with pytest.raises(ImageError):  # another file of that name
        Thumbnails(max_pixels=10**6).get(f"{shard.as_uri()}#{names[0]}", "1-1")


def test_without_the_token_nothing_is_told(client: Client) -> None:
    for token in (None, "", "wrong", TOKEN + "x", TOKEN[:-1]):
        for method, path in (("GET", "/api/index"), ("POST", "/api/search"), ("GET", "/api/thumbnail/1"), ("GET", "/metrics")):
            status, data = Client(client.port, token)(method, path)
            assert status == 401 and b"photos" not in data
    assert client("GET", "/api/index", Host="evil.example")[0] == 421


BAD = [
    {},
    [],
    {"queries": []},
    {"queries": [{}]},
    {"queries": [{"id": 1, "uri": "a"}]},
    {"queries": [{"id": -1}]},
    {"queries": [{"id": 10**30}]},
    {"queries": [{"id": 1}], "k": 0},
    {"queries": [{"id": 1}], "k": 51},
    {"queries": [{"id": 1}] * 9},
    {"queries": [{"id": 1}], "more": 1},
    {"queries": [{"vector": [1.0]}]},
    {"queries": [{"vector": []}]},
    {"queries": [{"vector": ["a"]}]},
    {"queries": [{"uri": "file:///etc/passwd"}]},
    {"queries": [{"uri": "\ud800"}]},
    {"queries": [{"label": "\ud800"}]},
    {"queries": [{"label": "none"}]},
    {"queries": [{"id": 1}], "labels": ["\udfff"]},
    {"queries": [{"id": 1}], "prefixes": ["x" * 5000]},
    {"queries": [{"id": 1}], "recipe_id": "0" * 64},
]
RAW = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[" * 50_000,
    b'{"queries":[{"vector":[NaN]}]}',
    b'{"queries":[{"vector":[1e999]}]}',
    b'{"k":' + b"9" * 6000 + b"}",
]


@pytest.mark.parametrize("body", [*BAD, *RAW], ids=range(len(BAD) + len(RAW)))
def test_bad_requests_are_refused(client: Client, body: object) -> None:
    status, data = client(
        "POST", "/api/search", body, **({"Content-Type": "application/json"} if isinstance(body, bytes) else {})
    )
    assert 400 <= status < 500, (status, data)
    json.loads(data)


def test_bad_images_are_refused(client: Client) -> None:
    bomb = io.BytesIO()
    Image.new("1", (3000, 3000)).save(bomb, "PNG")
    bodies = {"bomb": bomb.getvalue(), "empty": b"", "not_an_image": b"hello", "truncated": photo(1)[:-200]}
    for code, body in bodies.items():
        status, data = client("POST", "/api/search/image", body)
        assert status == 422 and code in json.loads(data)["detail"], (code, data)
    assert client("POST", "/api/search/image?k=51", photo(1))[0] == 422
    assert client("POST", "/api/search/image", b"x" * 200_001)[0] == 413


def test_a_long_body_without_a_length_is_cut_off(client: Client) -> None:
    blocks = (b"x" * 10_000 for _ in range(30))
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=300)
    try:
        connection.request("POST", "/api/search/image", blocks, {"Authorization": f"Bearer {TOKEN}"}, encode_chunked=True)
        status = connection.getresponse().status
    except (ConnectionResetError, BrokenPipeError):  # it answered and closed while we were still sending
        return
    assert status == 413


def test_bad_requests_of_all_kinds_get_only_refusals(client: Client) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    statuses = []
    for method, path, body, token in bad_requests(300, 8, TOKEN):
        status, data = Client(client.port, token)(method, path, body, **{"Content-Type": "application/json"})
        assert status == 200 or 400 <= status < 500, (status, path, data)
        statuses.append(status)
    assert statuses.count(401) == 15 and statuses.count(422) > 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    client.json("GET", "/api/index")


def test_too_many_at_once(photos: Path) -> None:
    with serving(photos / "index", max_concurrency=2, images=False) as (client, service):
        refused, real = threading.Event(), service.info

        def held() -> object:
            refused.wait(300)
            return real()

        def ask(_: int) -> int:
            status = client("GET", "/api/index")[0]
            if status == 429:
                refused.set()
            return status

        service.info = held
        with ThreadPoolExecutor(3) as threads:
            assert sorted(threads.map(ask, range(3))) == [200, 200, 429]
        assert client("GET", "/api/index")[0] == 200
        status, data = client("POST", "/api/search/image", photo(1))
        assert status == 422 and b"without its network" in data


def test_too_slow(photos: Path) -> None:
    with serving(photos / "index", timeout_seconds=1, images=False) as (client, service):
        answered = threading.Event()
        service.info = lambda: answered.wait(300)
        assert client("GET", "/api/index")[0] == 504
        answered.set()
        while (status := client("GET", "/healthz")[0]) == 504:  # it has no more than that second either
            pass
        assert status == 200


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


def test_the_command_serves_until_it_is_told_to_stop(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    arguments = ["serve", "--index", photos / "index", "--port", "0", "--token-file", tmp_path / "token", "--no-images"]
    arguments += ["--timeout-seconds", "300"]
    process = start_tlray(*arguments)
    assert process.stderr is not None
    line = process.stderr.readline()
    port = int(line.split("127.0.0.1:")[1].split("/")[0])
    assert Client(port).json("GET", "/api/index")["rows"] == 30
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert json.loads(stdout.splitlines()[-1])["requests"] == 1


def test_others_than_this_machine_need_a_token(photos: Path, tmp_path: Path) -> None:
    index = ["serve", "--index", photos / "index", "--no-images"]
    assert "--token-file" in error_of(tlray(*index, "--host", "0.0.0.0"))
    (tmp_path / "empty").write_text("\n")
    assert "no token" in error_of(tlray(*index, "--token-file", tmp_path / "empty"))
    assert "cannot read" in error_of(tlray(*index, "--token-file", tmp_path / "none"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "cannot listen" in error_of(tlray(*index, "--port", str(taken.getsockname()[1])))
    assert read_token(ServeConfig(index="x")) is None
