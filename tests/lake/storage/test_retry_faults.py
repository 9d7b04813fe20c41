"""The retry policy against a real S3 server behind a proxy that fails on purpose."""

import datetime
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from tests.factories import make_recipe_file
from tests.fault_proxy import Fault, FaultProxy, Request
from tlray.demo.s3_server import S3Server
from tlray.errors import (
    AccessError,
    CredentialsError,
    ObjectNotFoundError,
    StorageError,
    StoreAwayError,
)
from tlray.lake.storage import retry
from tlray.lake.storage.open import delta_options, open_store
from tlray.lake.storage.retry import BODY_ATTEMPTS, Attempts, Pace
from tlray.lake.storage.s3 import client as s3_client
from tlray.lake.table.table import Table


class Script:
    """Faults for requests that a test picks; the rest pass."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.always: Fault | None = None
        self.concerns: Callable[[Request], bool] = lambda request: True

    def __call__(self, request: Request) -> Fault | None:
        if not self.concerns(request):
            return None
        return self.faults.pop(0) if self.faults else self.always


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def proxy(script: Script, s3_env: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(s3_env.endpoint, script) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PATIENCE_SECONDS", 1.0)


@pytest.mark.parametrize("fault", ["slow_down", "unavailable", "reset", "lost_answer", "truncated", "expired"])
def test_every_request_survives_it(fault: Fault, proxy: FaultProxy, script: Script, s3_bucket: str) -> None:
    store, uri = open_store(s3_bucket), f"{s3_bucket}/x"
    script.faults = [fault]
    assert store.write(uri, b"0123456789" * 1000)
    assert store.read(uri).data == b"0123456789" * 1000
    script.faults = [fault]
    assert store.read(uri).data == b"0123456789" * 1000
    script.faults = [fault]
    assert sum(map(len, store.list(s3_bucket))) == 1
    script.faults = [fault]
    with store.open(uri) as file:
        file.seek(5)
        assert file.read(5) == b"56789"
    script.faults = [fault]
    assert delta_options(s3_bucket)["AWS_ENDPOINT_URL"] == proxy.endpoint
    script.faults = [fault]
    store.delete([uri])
    assert store.stat(uri) is None
    assert proxy.faults[fault] == 6


def test_a_listing_of_the_log_that_breaks_off_is_asked_for_again(proxy: FaultProxy, script: Script, s3_bucket: str) -> None:
    Table.create(f"{s3_bucket}/table", make_recipe_file())
    script.concerns = lambda request: "list-type=2" in request.query and "_delta_log" in request.query
    script.faults = ["truncated"]
    assert Table.open(f"{s3_bucket}/table").version == 0
    assert proxy.faults["truncated"] == 1
    script.always = "truncated"
    with pytest.raises(StorageError, match=r"cannot read the log of s3://.*/table"):
        Table.open(f"{s3_bucket}/table")
    assert proxy.faults["truncated"] == 1 + BODY_ATTEMPTS


@pytest.mark.parametrize("if_absent", [False, True])
def test_an_upload_that_breaks_off_leaves_nothing(if_absent: bool, proxy: FaultProxy, script: Script, s3_bucket: str) -> None:
    store, uri = open_store(s3_bucket), f"{s3_bucket}/x"
    script.faults = ["broken_upload", "broken_upload"]
    assert store.write(uri, b"0123456789" * 1000, if_absent=if_absent)
    assert store.read(uri).data == b"0123456789" * 1000


def test_an_object_that_cannot_be_had_is_told_from_a_store_that_is_away(
    proxy: FaultProxy, script: Script, s3_bucket: str, impatient: None
) -> None:
    store, uri = open_store(s3_bucket), f"{s3_bucket}/x"
    store.write(uri, b"x")
    script.always = "unavailable"
    script.concerns = lambda request: request.key.endswith("/x")
    with pytest.raises(StorageError, match=r"/x: \d+ attempts in \d+ s failed, the last one with: .*InternalError") as caught:
        store.read(uri)
    assert not isinstance(caught.value, StoreAwayError)
    for fault in ("unavailable", "reset"):
        script.always, script.concerns = fault, lambda request: True
        with pytest.raises(StoreAwayError, match=r"nothing else is answered either: .* run the same command again"):
            store.read(uri)


def test_a_stalled_answer_is_waited_out_and_a_dead_one_asked_for_again(
    proxy: FaultProxy, script: Script, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, uri = open_store(s3_bucket), f"{s3_bucket}/x"
    store.write(uri, b"0123456789" * 1000)
    script.faults, proxy.stall_seconds = ["stall"], 1.5
    began = time.monotonic()
    assert len(store.read(uri).data) == 10_000
    assert time.monotonic() - began > 1.4 and proxy.requests == 2
    config = s3_client._CONFIG.merge(type(s3_client._CONFIG)(read_timeout=2))
    monkeypatch.setattr(s3_client, "_CONFIG", config)
    monkeypatch.setattr(s3_client, "_CONNECTIONS", s3_client._Connections())
    script.faults, proxy.stall_seconds = ["stall"], 3600  # so what is read comes from another request
    assert len(store.read(uri).data) == 10_000
    assert proxy.requests >= 4 and proxy.faults["stall"] == 2


def test_credentials_that_expired_are_looked_for_once(
    proxy: FaultProxy, script: Script, s3_bucket: str, s3_env: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The file of credentials is written anew, as a side-car does, while the old ones go bad."""
    file = tmp_path / "credentials"

    def write(secret: str) -> None:
        key = s3_env.env["AWS_ACCESS_KEY_ID"]
        file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")

    write(s3_env.env["AWS_SECRET_ACCESS_KEY"])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    store, uri = open_store(s3_bucket), f"{s3_bucket}/x"
    store.write(uri, b"x")
    write("another")
    assert store.read(uri).data == b"x", "credentials at hand are used as long as they do"
    write(s3_env.env["AWS_SECRET_ACCESS_KEY"])
    script.faults = ["expired"]
    assert store.read(uri).data == b"x"
    write("bad")
    script.faults = ["expired"]
    with pytest.raises(CredentialsError, match="SignatureDoesNotMatch"):
        store.read(uri)
    write(s3_env.env["AWS_SECRET_ACCESS_KEY"])
    assert delta_options(s3_bucket)["AWS_SECRET_ACCESS_KEY"] == s3_env.env["AWS_SECRET_ACCESS_KEY"]
    before = proxy.requests
    script.always = "expired"
    with pytest.raises(CredentialsError, match="ExpiredToken"):
        store.read(uri)
    assert proxy.requests == before + 2
    with pytest.raises(AccessError):
        store.stat(uri)
    assert proxy.requests == before + 4


def test_threads_that_expire_together_renew_once(
    proxy: FaultProxy, script: Script, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, uris = open_store(s3_bucket), [f"{s3_bucket}/{number}" for number in range(8)]
    for uri in uris:
        store.write(uri, b"x")
    made, expired, connect = [], set(), s3_client._connect
    monkeypatch.setattr(s3_client, "_connect", lambda access, pace: made.append(pace) or connect(access, pace))
    together = threading.Barrier(8)  # before each request, so that all have asked with the old credentials
    monkeypatch.setattr(Pace, "wait", lambda _: together.wait(300))

    def expire_first(request: Request) -> Fault | None:
        first = request.key not in expired
        expired.add(request.key)
        return "expired" if first else None

    proxy.decide = expire_first
    with ThreadPoolExecutor(8) as threads:
        assert {blob.data for blob in threads.map(store.read, uris)} == {b"x"}
    assert proxy.faults["expired"] == 8 and len(made) == 1


def test_a_request_that_is_refused_is_not_repeated(proxy: FaultProxy, script: Script, s3_bucket: str) -> None:
    script.always = "missing"
    with pytest.raises(ObjectNotFoundError):
        open_store(s3_bucket).read(f"{s3_bucket}/x")
    assert proxy.requests == 1


def test_a_busy_store_is_asked_more_slowly(
    proxy: FaultProxy, script: Script, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of many requests at once fails, and the process's pace is told of each; what it makes of that, `test_pace` says."""
    store, uri, told, slow_down = open_store(s3_bucket), f"{s3_bucket}/x", [], Pace.slow_down
    monkeypatch.setattr(Pace, "slow_down", lambda *arguments: told.append(arguments) or slow_down(*arguments))
    store.write(uri, b"x")
    script.faults = ["slow_down"] * 12
    with ThreadPoolExecutor(16) as threads:
        assert {blob.data for blob in threads.map(store.read, [uri] * 32)} == {b"x"}
    assert proxy.faults["slow_down"] == len(told) == 12


def test_attempts_end_by_number_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(retry, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    attempts = Attempts()
    while attempts.pause():
        pass
    assert sum(slept) > retry.PATIENCE_SECONDS - retry.LONGEST_PAUSE_SECONDS and max(slept) <= retry.LONGEST_PAUSE_SECONDS
    slow = Attempts()
    for _ in range(retry.LEAST_ATTEMPTS - 1):
        now[0] += 1000
        assert slow.pause()
    now[0] += 1000
    assert not slow.pause()
    few = Attempts(2)
    assert few.pause() and not few.pause()


def test_delta_is_told_the_policy(proxy: FaultProxy, script: Script, s3_bucket: str) -> None:
    """delta-rs has its own client: it survives the same faults by the options that it is given."""
    uri = f"{s3_bucket}/table"
    for number, fault in enumerate(["slow_down", "unavailable", "reset"]):
        script.faults = [fault, fault]
        write_deltalake(uri, pa.table({"x": [number]}), mode="append", storage_options=delta_options(uri))
        assert not script.faults
    assert sorted(DeltaTable(uri, storage_options=delta_options(uri)).to_pyarrow_table()["x"].to_pylist()) == [0, 1, 2]


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_the_wall_clock_decides_nothing(
    jump: float, proxy: FaultProxy, script: Script, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is set by a day, there and back, between any two questions for it; only signatures may see the true time.

    Who waited by it would do so for a day, which pytest's own limit ends.
    """
    assert datetime.datetime.now(datetime.UTC).year > 2000
    true_time, asked = time.time, [0]

    def time_that_jumps() -> float:
        asked[0] += 1
        return true_time() + jump * (asked[0] % 2)

    monkeypatch.setattr(time, "time", time_that_jumps)
    store, uri = open_store(s3_bucket), f"{s3_bucket}/x"
    script.faults = ["slow_down", "reset", "unavailable"]
    store.write(uri, b"x")
    script.faults = ["slow_down"] * 3
    assert store.read(uri).data == b"x"
    assert not script.faults
