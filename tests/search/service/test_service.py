"""The service as clients see it: a real server on loopback, real photographs, and everything that a client may send wrongly."""

import http.client
import io
import json
import resource
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.bench.service import bad_requests
from tests.photos import photo, start_tlray
from tests.search.service.serving import TOKEN, Client, serving
from tlray.errors import ImageError
from tlray.lake.storage.open import open_store
from tlray.search.service.backend.images.decoding import DecodingLimits
from tlray.search.service.backend.images.thumbnails import Thumbnails


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
    points = client.json("GET", "/api/map")["points"]
    assert len(points) == 30 and all(-1 <= point["x"] <= 1 and -1 <= point["y"] <= 1 for point in points)
    paths = client.json("GET", "/openapi.json")["paths"]
    assert {
        "/api/search",
        "/api/search/image",
        "/api/index",
        "/api/random",
        "/api/map",
        "/api/text/{row_id}",
        "/api/thumbnail/{row_id}",
    } == set(paths)
    status, text = client("GET", "/metrics")
    assert status == 200 and b'tlray_requests_total{route="/api/index",status="200"}' in text
    assert client.json("GET", "/readyz") == {"status": "ready", "version": 1}
    assert (info["label_count"], info["max_k"], info["max_body_bytes"]) == (2, 50, 200_000)
    for path in ("/", "/static/app.js", "/static/style.css", "/static/map.js", "/healthz", "/docs"):
        assert Client(client.port, None)("GET", path)[0] == 200, path


def test_thumbnails_are_of_rows_only(client: Client) -> None:
    status, data = client("GET", "/api/thumbnail/3")
    assert status == 200 and max(Image.open(io.BytesIO(data)).size) <= 320
    for name in ("30", "-1", "x", "99999999999999999999", "../secret.txt", "file:///etc/passwd", "%2e%2e%2fsecret.txt"):
        assert client("GET", f"/api/thumbnail/{name}")[0] in (404, 422), name
    for path in (
        "/static/../__init__.py",
        "/static/%2e%2e/__init__.py",
        "/static//etc/passwd",
        "/../../etc/passwd",
        "/static/..%2f__init__.py",
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
    thumbnails = Thumbnails(DecodingLimits(10**6))
    for at in (3, 0, 4):
        shown = Image.open(io.BytesIO(thumbnails.get(f"{shard.as_uri()}#{names[at]}", info_of.etag))).convert("RGB")
        original = Image.open(io.BytesIO(images[at])).convert("RGB")
        assert shown.size == original.size
        assert np.abs(np.asarray(shown, float) - np.asarray(original, float)).mean() < 4
    with pytest.raises(ImageError):
        thumbnails.get(f"{shard.as_uri()}#none", info_of.etag)
    with pytest.raises(ImageError):  # another file of that name
        Thumbnails(DecodingLimits(10**6)).get(f"{shard.as_uri()}#{names[0]}", "1-1")


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
