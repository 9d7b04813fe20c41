"""Stores of different accounts and endpoints in one command: two real servers, and what requests say to a public bucket."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import polars as pl
import pytest

from tests.conftest import forget_aws
from tests.factories import make_recipe_file
from tests.photos import RECIPE, error_of, photo, result_of, tlray
from tlray.config import ShowConfig
from tlray.config.sections.stores import access_of, store_access, stores_in_use, using
from tlray.demo.s3_server import S3Server
from tlray.errors import AccessError, ConfigError
from tlray.lake.storage.open import delta_options, open_store
from tlray.lake.table.table import Table
from tlray.ray_cluster.session import joined

PHOTOS = 40


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[S3Server, S3Server]]:
    with S3Server() as one, S3Server() as other:
        yield one, other


@pytest.fixture
def profiles(servers: tuple[S3Server, S3Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Profiles `photos` and `lake`, each with the keys of one server; and how `stores` names the two.

    Nothing else is known of either.
    """
    forget_aws(monkeypatch)
    lines = []
    for name, server in zip(("photos", "lake"), servers, strict=True):
        lines += [f"[{name}]", *(f"{key.lower()}={server.env[key]}" for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))]
    (tmp_path / "credentials").write_text("\n".join(lines))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    return {
        name: f"s3://{name}/ profile={name} endpoint_url={server.env['AWS_ENDPOINT_URL']} region=us-east-1"
        for name, server in zip(("photos", "lake"), servers, strict=True)
    }


def client_of(server: S3Server) -> object:
    keys = {"aws_access_key_id": server.env["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": server.env["AWS_SECRET_ACCESS_KEY"]}
    return boto3.client("s3", endpoint_url=server.env["AWS_ENDPOINT_URL"], region_name="us-east-1", **keys)


def put_photos(server: S3Server, folder: str) -> None:
    client = client_of(server)
    for number in range(PHOTOS):
        client.put_object(Bucket="photos", Key=f"{folder}/{number:03d}.jpg", Body=photo(number, (32, 24)))


@pytest.fixture(scope="module")
def buckets(servers: tuple[S3Server, S3Server]) -> None:
    photos, lake = servers
    photos.make_bucket("photos")
    put_photos(photos, "one")
    lake.make_bucket("lake")


@pytest.mark.s3
def test_source_on_one_server_and_table_on_another(
    servers: tuple[S3Server, S3Server], buckets: None, profiles: dict[str, str]
) -> None:
    arguments = ["extract", "--local", "s3://photos/one/", "s3://lake/t", *RECIPE]
    result = result_of(tlray(*arguments, "--stores", *profiles.values()))
    assert result["ok"] == PHOTOS
    lake = servers[1]
    options = {key.lower(): lake.env[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")}
    frame = pl.scan_delta("s3://lake/t", storage_options=options | {"aws_region": "us-east-1", "aws_allow_http": "true"})
    assert frame.select(pl.len()).collect().item() == PHOTOS
    assert result_of(tlray("show", "s3://lake/t", "--stores", profiles["lake"]))["ok"] == PHOTOS
    assert stores_in_use() == ()
    assert "s3://lake/t" in error_of(tlray("show", "s3://lake/t"))  # without a word of them nobody has credentials


@pytest.mark.s3
@pytest.mark.ray
@pytest.mark.slow
def test_workers_of_a_cluster_are_told(buckets: None, profiles: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    arguments = ["extract", "s3://photos/one/", "s3://lake/on-ray", *RECIPE, "--stores", *profiles.values()]
    command = [sys.executable, "-m", "tlray", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert f'"ok": {PHOTOS}' in process.stdout


@pytest.mark.s3
def test_the_wrong_account_is_refused(servers: tuple[S3Server, S3Server], buckets: None, profiles: dict[str, str]) -> None:
    wrong = profiles["photos"].replace("profile=photos", "profile=lake")
    message = error_of(tlray("extract", "--local", "s3://photos/one/", "s3://lake/never", *RECIPE, "--stores", wrong))
    assert "AccessError" in message or "CredentialsError" in message
    with using([profiles["photos"].replace("profile=photos", "profile=nobody")]), pytest.raises(AccessError, match="nobody"):
        open_store("s3://photos/").stat("s3://photos/one/000.jpg")


class Listener(BaseHTTPRequestHandler):
    """Says that nothing is there, and keeps the headers of each request."""

    seen: list[dict[str, str]]

    def do_HEAD(self) -> None:
        self.seen.append({name.lower(): value for name, value in self.headers.items()})
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def listener() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """An endpoint, and the headers that it was sent."""
    seen: list[dict[str, str]] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Ours", (Listener,), {"seen": seen})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()


def test_a_public_bucket_is_asked_without_a_signature_and_who_pays_says_so(
    listener: tuple[str, list[dict[str, str]]], profiles: dict[str, str]
) -> None:
    endpoint, seen = listener
    entries = {
        "public": f"s3://public/ anonymous endpoint_url={endpoint} region=us-east-1",
        "paid": f"s3://paid profile=lake requester_pays endpoint_url={endpoint} region=us-east-1",
        "own": f"s3://own/ profile=lake endpoint_url={endpoint} region=us-east-1",
    }
    headers = {}
    with using(list(entries.values())):
        for bucket in entries:
            assert open_store(f"s3://{bucket}/").stat(f"s3://{bucket}/x.jpg") is None
            headers[bucket] = seen[-1]
    assert "authorization" not in headers["public"] and "authorization" in headers["paid"]
    assert headers["paid"]["x-amz-request-payer"] == "requester" and "x-amz-request-payer" not in headers["own"]


@pytest.mark.s3
def test_delta_rs_is_told_the_same(servers: tuple[S3Server, S3Server], buckets: None, profiles: dict[str, str]) -> None:
    with using(list(profiles.values())):
        table = Table.create("s3://lake/told", make_recipe_file())
        assert Table.open(table.uri).version == 0
        options = delta_options(table.uri)
    assert options["AWS_ACCESS_KEY_ID"] == servers[1].env["AWS_ACCESS_KEY_ID"]
    assert options["AWS_ENDPOINT_URL"] == servers[1].env["AWS_ENDPOINT_URL"]


def test_calls_with_other_stores_are_not_mixed() -> None:
    """Whichever of two calls with the same stores ends first, the other one keeps them."""
    one, other = ["s3://photos/ region=one"], ["s3://photos/ region=two"]
    first, second = using(one), using(one)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with pytest.raises(ConfigError, match="other stores"), using(other):
        pass
    with using(()):
        assert [each.region for each in stores_in_use()] == ["one"]
    second.__exit__(None, None, None)
    with using(other):
        assert [each.region for each in stores_in_use()] == ["two"]
    assert stores_in_use() == ()


def test_workers_that_cannot_be_told_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("tlray.ray_cluster.session.check_nodes", lambda: None)  # of which there are none
    with using(["s3://photos/ region=one"]), pytest.raises(ConfigError, match="joined Ray already"), joined():
        pass
    with joined() as is_own:
        assert not is_own


def test_the_longest_prefix_counts_and_names_are_not_cut() -> None:
    with using(["s3://photos/ region=one", "s3://photos/2026/private profile=two"]):
        found = [
            access_of(uri)
            for uri in ("s3://photos", "s3://photos/2026/a.jpg", "s3://photos/2026/private/a.jpg", "s3://photos2/a.jpg")
        ]
    assert [each and (each.region, each.profile) for each in found] == [("one", None), ("one", None), (None, "two"), None]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("photos profile=x", "expected an S3 prefix"),
        ("s3:// profile=x", "expected an S3 prefix"),
        ("s3://photos/ secret_key=x", "'secret_key=x' of s3://photos/ is unknown; expected profile=..., endpoint_url=..."),
        ("s3://photos/ profile=", "'profile=' of s3://photos/ is unknown"),
        ("s3://photos/ profile=a profile=b", "given twice"),
        ("s3://photos/ anonymous profile=a", "neither a profile nor"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        store_access(text)
    assert said in str(caught.value)
    assert said in error_of(tlray("show", "s3://lake/t", "--stores", text))


def test_a_prefix_that_is_reached_in_two_ways_is_refused() -> None:
    said = error_of(tlray("show", "s3://lake/t", "--stores", "s3://lake profile=a", "s3://lake/ profile=b"))
    assert "s3://lake/ is given twice, in two ways" in said
    for same in ("s3://lake profile=a", "s3://lake/ profile=a", "s3://lake/t profile=b"):
        assert ShowConfig(table="s3://lake/t", stores=("s3://lake/ profile=a", same)).stores[1] == same
