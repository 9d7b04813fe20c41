"""What boto3 was told of a store, delta-rs and pyarrow know as well: certificates, addresses, proxies, regions.

On a real server.
"""

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.conftest import forget_aws, use_server
from tests.factories import make_recipe_file, make_rows
from tests.fault_proxy import FaultProxy
from tests.forwarder import Forwarder, end
from tlray.demo.s3_server import S3Server
from tlray.errors import AccessError
from tlray.lake.storage.open import arrow_filesystem, delta_options, open_store
from tlray.lake.storage.s3 import delta, store
from tlray.lake.table.parts import Change, write_part
from tlray.lake.table.table import Table

AWS = "amazonaws.com"
URIS = ["s3://b/1.jpg", "s3://b/2.jpg"]


def make_table(uri: str) -> Table:
    """A table with two rows, made and committed."""
    table = Table.create(uri, make_recipe_file())
    rows = make_rows([(uri, "1", None) for uri in URIS])
    part = write_part(table.uri, rows, status="ok", stem="p", recipe_id=table.recipe_file.recipe_id)
    table.commit(Change([part]), app_id="run", sequence=1, info={})
    return table


class TlsForwarder(Forwarder):
    """Speaks TLS to clients and hands their bytes to a server that does not."""

    def __init__(self, target: tuple[str, int], certificate: trustme.LeafCert) -> None:
        super().__init__(socket.create_server(("127.0.0.1", 0)), target)
        self.endpoint = self.endpoint.replace("http://", "https://")
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self._context)

    def connect(self, client: socket.socket, server: socket.socket) -> None:
        threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        try:
            secure = self._context.wrap_socket(client, server_side=True)
        except (OSError, ssl.SSLError):  # a client that does not trust it
            end(client, server)
            return
        for one, other in ((secure, server), (server, secure)):
            threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(2**16):
                other.sendall(data)
        except OSError:
            pass
        end(one, other)


@pytest.fixture
def private(s3_server: S3Server, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The server is reached by TLS alone, under a certificate of an authority of its own: the file of which comes out."""
    del s3_bucket
    authority, file = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    host, _, port = s3_server.endpoint.removeprefix("http://").partition(":")
    with TlsForwarder((host, int(port)), authority.issue_cert("127.0.0.1")) as forwarder:
        monkeypatch.setenv("AWS_ENDPOINT_URL", forwarder.endpoint)
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        yield file


@pytest.mark.parametrize("told", ["AWS_CA_BUNDLE", "ca_bundle", "REQUESTS_CA_BUNDLE"])
def test_a_private_authority(private: Path, s3_bucket: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if told == "ca_bundle":
        (tmp_path / "config").write_text(f"[default]\nca_bundle = {private}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    else:
        monkeypatch.setenv(told, str(private))
    table = make_table(f"{s3_bucket}/table")
    assert Table.open(table.uri).read()["uri"].to_pylist() == URIS
    check_arrow(s3_bucket)


def check_arrow(bucket: str) -> None:
    """Write by pyarrow's client, as Ray Train does; read by ours."""
    filesystem = arrow_filesystem(f"{bucket}/x")
    assert filesystem is not None
    with filesystem.open_output_stream(f"{bucket.removeprefix('s3://')}/notes.json") as stream:
        stream.write(b"{}")
    assert open_store(bucket).read(f"{bucket}/notes.json").data == b"{}"


def test_an_authority_that_nobody_told_of_is_no_passing_failure(private: Path, s3_bucket: str) -> None:
    with pytest.raises(AccessError, match="AWS_CA_BUNDLE"):
        open_store(s3_bucket).stat(f"{s3_bucket}/x")


@pytest.fixture(scope="module")
def virtual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server whose buckets are hosts, `<bucket>.s3.example.test`."""
    with S3Server(tmp_path_factory.mktemp("virtual"), flags=["-s3.domainName=s3.example.test"]) as server:
        yield server
        server.kill()


@pytest.mark.s3
def test_virtual_hosts_behind_a_proxy(virtual: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_server(virtual, monkeypatch)
    bucket = virtual.make_bucket("lake")
    (tmp_path / "config").write_text(
        "[default]\n[profile lab]\nregion = us-east-1\nendpoint_url = http://s3.example.test\n"
        "s3 =\n    addressing_style = virtual\n"
    )
    for name in ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    hosts = set()

    class Proxy(FaultProxy):
        def ask(self, method: str, target: str, headers: list[tuple[str, str]], body: bytes | None) -> object:
            said = {name.lower(): value for name, value in headers}
            hosts.add((said["host"], said["user-agent"].split("/")[0]))
            return super().ask(method, target, headers, body)

    with Proxy(virtual.endpoint, lambda request: None) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.endpoint)
        table = make_table(f"{bucket}/table")
        assert Table.open(table.uri).read()["uri"].to_pylist() == URIS
        filesystem = arrow_filesystem(table.uri)
        assert filesystem is not None  # it reads only: the proxy here knows no chunked uploads
        with filesystem.open_input_stream("lake/table/recipe.json") as stream:
            assert stream.read() == table.recipe_file.to_json()
    assert {host for host, _ in hosts} == {"lake.s3.example.test"} and len(hosts) == 3, "all clients asked there"


@pytest.mark.parametrize(
    ("config", "region", "endpoint", "virtual"),
    [
        ("region = us-east-1", "eu-west-1", "https://s3.eu-west-1.amazonaws.com", "false"),
        ("region = cn-north-1", "cn-north-1", "https://lake.s3.cn-north-1.amazonaws.com.cn", "true"),
        (
            "region = us-east-1\nuse_dualstack_endpoint = true",
            "eu-west-1",
            f"https://lake.s3.dualstack.eu-west-1.{AWS}",
            "true",
        ),
        ("region = us-east-1\nuse_fips_endpoint = true", "us-west-2", "https://lake.s3-fips.us-west-2.amazonaws.com", "true"),
        ("region = us-east-1\nendpoint_url = https://oss.example.test", None, "https://oss.example.test", "false"),
        ("region = us-east-1\nendpoint_url = http://h:9\ns3 =\n  addressing_style = virtual", None, "http://lake.h:9", "true"),
        ("region = us-east-1\nendpoint_url = http://h:9\ns3 =\n  addressing_style = path", None, "http://h:9", "false"),
    ],
)
def test_addresses(
    config: str, region: str | None, endpoint: str, virtual: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_aws(monkeypatch)
    (tmp_path / "config").write_text(
        f"[default]\n{config if 'region' in config else 'region = us-east-1' + chr(10) + config}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    headers = {"x-amz-bucket-region": region} if region else {}
    monkeypatch.setattr(store, "call", lambda *_: {"ResponseMetadata": {"HTTPHeaders": headers}})
    options = delta_options("s3://lake/t")
    assert (options["AWS_ENDPOINT_URL"], options["AWS_VIRTUAL_HOSTED_STYLE_REQUEST"]) == (endpoint, virtual)
    assert options["AWS_REGION"] == (region or "us-east-1")


def test_certificates_are_named_only_while_a_client_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "before")
    with delta.trusting("/ca.pem"):
        assert os.environ["SSL_CERT_FILE"] == "/ca.pem"
    assert os.environ["SSL_CERT_FILE"] == "before"
