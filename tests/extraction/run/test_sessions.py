"""`tlray extract` from S3 to S3 while the session that it signs with runs out, or the clock is wrong."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import use_server
from tests.extraction.on_ray.faulty import IMAGES, Lake, Way, slow_way, started
from tests.fault_proxy import Fault, FaultProxy, Request
from tests.photos import complaints, result_of, tlray
from tests.ray_cluster import RayCluster
from tlray.demo.s3_server import S3Server
from tlray.errors import CredentialsError
from tlray.lake.source import read_spec
from tlray.lake.storage.open import open_store

pytestmark = [pytest.mark.s3, pytest.mark.slow]

OLD, NEW = "old-session", "new-session"


class TwoKeys(S3Server):
    """A server that takes the keys of two sessions of one role."""

    def _identities(self) -> dict[str, object]:
        credentials = [{"accessKey": key, "secretKey": self._secret_key} for key in (self._access_key, OLD, NEW)]
        return {"identities": [{"name": "role", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List"]}]}

    def process(self, folder: Path, lasts: str) -> dict[str, str]:
        """Has AWS's tools ask a program for keys: old ones, which say that they last so long, until it has new ones."""
        folder.mkdir()
        program, config = folder / "session.sh", folder / "config"
        answer = '{"Version":1,"AccessKeyId":"%s","SecretAccessKey":"%s","Expiration":"%s"}'
        program.write_text(
            f"#!/bin/sh\nkey={OLD} lasts='{lasts}'\n[ -e {folder}/renewed ] && key={NEW} lasts='2 hours'\n"
            f"printf '{answer}' $key {self._secret_key} $(date -u -d \"$lasts\" +%Y-%m-%dT%H:%M:%SZ)\n"
        )
        program.chmod(0o700)
        config.write_text(f"[default]\ncredential_process = {program}\n")
        return {"AWS_CONFIG_FILE": str(config)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[TwoKeys]:
    del s3_server  # only for its skip
    with TwoKeys(tmp_path_factory.mktemp("server")) as server:
        yield server
        server.kill()


@pytest.fixture(scope="module")
def lake(server: TwoKeys) -> Iterator[Lake]:
    with pytest.MonkeyPatch.context() as patch:
        use_server(server, patch)
        yield Lake.make(server.make_bucket("lake"))


class Session:
    """Refuses what is signed with the old keys, once some photos were asked for."""

    def __init__(self, renewed: Path) -> None:
        self._renewed, self._photos = renewed, 0
        self.keys: set[str] = set()

    def __call__(self, request: Request) -> Fault | None:
        self.keys.add(request.access_key)
        self._photos += "/photos/" in request.key
        if self._photos > IMAGES // 2:
            self._renewed.touch()
            return "expired" if request.access_key == OLD else None
        return None


@pytest.mark.parametrize("lasts", ["14 minutes", "2 hours"])
def test_a_session_is_renewed_in_the_middle_of_a_run(
    lasts: str, lake: Lake, server: TwoKeys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By botocore, which does so before its end, or when it has ended before its time."""
    monkeypatch.setattr(read_spec, "BATCH_BYTES", 40 * 160 * 160 * 3)
    config, session, table = (
        server.process(tmp_path / "aws", lasts),
        Session(tmp_path / "aws" / "renewed"),
        f"session-{lasts[0]}",
    )
    with FaultProxy(server.endpoint, session) as proxy, monkeypatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        for name, value in (config | {"AWS_ENDPOINT_URL": proxy.endpoint}).items():
            patch.setenv(name, value)
        assert result_of(tlray(*lake.arguments(table), "--local"))["ok"] == IMAGES
    assert session.keys == {OLD, NEW}
    assert proxy.faults["expired"] or lasts == "14 minutes"
    lake.assert_exact(table)


def test_who_gives_out_sessions_that_have_ended_is_named(server: TwoKeys, lake: Lake, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        patch.setenv("AWS_CONFIG_FILE", server.process(tmp_path / "aws", "-1 minutes")["AWS_CONFIG_FILE"])
        with pytest.raises(CredentialsError, match=r"still expired. What gives them out \(credential_process, a role"):
            open_store(lake.bucket).read(f"{lake.bucket}/photos/00000.jpg")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("expired", "has expired"),
        ("skewed", f"the clock of {os.uname().nodename} is wrong"),
    ],
)
def test_a_run_whose_requests_are_refused_loses_nothing(
    fault: Fault, said: str, lake: Lake, server: TwoKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the middle on: no photo counts as failed, and the same command goes on with good ones."""
    monkeypatch.setattr(read_spec, "BATCH_BYTES", 40 * 160 * 160 * 3)
    photos = 0

    def refuse(request: Request) -> Fault | None:
        nonlocal photos
        photos += "/photos/" in request.key
        return fault if photos > IMAGES // 2 else None

    with FaultProxy(server.endpoint, refuse) as proxy, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        outcome = tlray(*lake.arguments(fault), "--local")
    (complaint,) = complaints(outcome.stderr)  # of the commit that failed or, exit code 2, of the question that was refused
    assert outcome.returncode in (1, 2)
    assert said in complaint and "run the same command again: it goes on from the last commit" in complaint
    assert "failed" not in set(lake.rows(fault)["status"])
    result = result_of(tlray(*lake.arguments(fault), "--local"))
    assert (result["failed"], result["listed"]) == (0, IMAGES)
    lake.assert_exact(fault)


@pytest.mark.ray
def test_workers_whose_session_has_ended_end_the_run(
    lake: Lake, server: TwoKeys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    way = Way(photo_seconds=0.05)
    with slow_way(server.endpoint, way) as env, RayCluster(tmp_path, cpus=2, env=env) as cluster:
        with started(lake.arguments("workers"), cluster.env, tmp_path / "driver") as command:
            command.until(lambda: lake.parts("workers") >= 2)
            way.fault = lambda request: "expired"
            assert command.end() in (1, 2)
        assert "has expired" in command.complaint and "check the AWS credentials" in command.complaint
        way.fault, way.photo_seconds = lambda request: None, 0
        with started(lake.arguments("workers"), cluster.env, tmp_path / "again") as command:
            assert command.result()["failed"] == 0
    lake.assert_exact("workers")
