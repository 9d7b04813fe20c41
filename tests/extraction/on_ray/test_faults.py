"""`tlray extract --local` from S3 to S3 behind a proxy that fails on purpose, with a server that is killed twice."""

import random
import threading
import time
from collections.abc import Iterator

import polars as pl
import pytest

from tests.conftest import use_server
from tests.extraction.test_in_process import assert_same
from tests.fault_proxy import Fault, FaultProxy, Request
from tests.photos import RECIPE, SHORT_LEASE, error_of, frame_of, photo, result_of, s3_options, tlray
from tlray.demo.s3_server import S3Server
from tlray.lake.source import read_spec
from tlray.lake.storage import retry
from tlray.lake.storage.open import open_store
from tlray.lake.storage.s3 import delta
from tlray.lake.table import table

pytestmark = [pytest.mark.s3, pytest.mark.slow]

IMAGES = 600


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[tuple[S3Server, str]]:
    """A server of its own, which may be killed, with a bucket of photos."""
    del s3_server  # only for its skip
    with pytest.MonkeyPatch.context() as patch, S3Server(tmp_path_factory.mktemp("server")) as server:
        use_server(server, patch)
        bucket = server.make_bucket("lake")
        store = open_store(bucket)
        for number in range(IMAGES):
            store.write(f"{bucket}/photos/{number:05d}.jpg", photo(number, (32, 24)))
        yield server, bucket
        server.kill()  # its orderly end takes ten seconds


def run(bucket: str, table: str, *more: str) -> list[str]:
    places = ["--source.uri", f"{bucket}/photos/", "--table", f"{bucket}/{table}"]
    return ["extract", "--local", *places, *RECIPE, *SHORT_LEASE, *more]


def rows_of(bucket: str, table: str) -> pl.DataFrame:
    return frame_of(f"{bucket}/{table}", s3_options())


class Weather:
    """Faults drawn from a seed: bursts of SlowDown, and all else now and then; some objects vanish after the listing.

    Each comes at least once, however fast requests follow each other, and none so often that retries must give up.
    """

    RATES: tuple[tuple[Fault, float], ...] = (
        ("reset", 0.02),
        ("lost_answer", 0.02),
        ("truncated", 0.03),
        ("expired", 0.01),
        ("unavailable", 0.01),
        ("missing", 0.02),
    )

    def __init__(self, gone: set[str], seed: int = 5) -> None:
        self._rng = random.Random(seed)
        self._gone, self._once = gone, set[tuple[Fault, str]]()
        self._busy, self._stalls = 0, 0
        self._due = [fault for fault, _ in self.RATES]  # each comes at least once

    def __call__(self, request: Request) -> Fault | None:
        if any(request.key.endswith(name) for name in self._gone) and request.method == "GET":
            return "missing"
        if self._busy:
            self._busy -= 1
            return "slow_down"
        if request.number == 100 or self._rng.random() < 0.003:
            self._busy = self._rng.randint(2, 10)
        if self._stalls < 2 and request.number > 150 and request.method == "GET" and "photos/" in request.key:
            self._stalls += 1
            return "stall"
        if self._due and (fault := self._allowed(self._due[-1], request)):
            return self._due.pop() and fault
        draw = self._rng.random()
        for fault, rate in self.RATES:
            draw -= rate
            if draw < 0:
                return self._allowed(fault, request)
        return None

    def _allowed(self, fault: Fault, request: Request) -> Fault | None:
        """Those that must not come twice to a key: credentials that were renewed are good, and an object that is there is
        found. Of the log all keys are one, as opening it asks for several, with the same credentials. Not found are only
        photos: a log that is said to be missing is another kind of fault.
        """
        if fault not in ("expired", "missing"):
            return fault
        is_photo = request.method == "GET" and "/photos/" in request.key
        key = "log" if request.agent.startswith("object_store") else request.key
        if (fault == "missing" and not is_photo) or (fault, key) in self._once:
            return None
        self._once.add((fault, key))
        return fault


def test_nothing_is_lost_and_nothing_twice(lake: tuple[S3Server, str], monkeypatch: pytest.MonkeyPatch) -> None:
    server, bucket = lake
    result_of(tlray(*run(bucket, "reference")))
    reference = rows_of(bucket, "reference")
    gone = {f"{number:05d}.jpg" for number in range(100, 105)}
    # Small units, and a thread that is slow enough for the server to be killed in the middle of the work.
    monkeypatch.setattr(read_spec, "BATCH_BYTES", 40 * 160 * 160 * 3)
    # Also where the server takes minutes to start.
    monkeypatch.setattr(retry, "PATIENCE_SECONDS", 240.0)
    monkeypatch.setattr(delta, "RETRIES", delta.RETRIES | {"retry_timeout": "240s"})
    killed = []

    def kill_twice(proxy: FaultProxy) -> None:
        for requests in (IMAGES // 3, 2 * IMAGES // 3):
            while proxy.requests < requests:
                time.sleep(0.01)
            server.kill()
            killed.append(proxy.requests)
            time.sleep(1)  # with nobody there
            server.start()

    with FaultProxy(server.endpoint, Weather(gone), stall_seconds=10) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        killer = threading.Thread(target=kill_twice, args=(proxy,), daemon=True)
        killer.start()
        outcome = tlray(*run(bucket, "stormy"))
        killer.join(300)
    result = result_of(outcome)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    print(f"faults {dict(proxy.faults)} in {proxy.requests} requests, killed at {killed}, {result['seconds']} s")
    assert len(killed) == 2 and set(proxy.faults) >= {"slow_down", "stall", *(fault for fault, _ in Weather.RATES)}
    assert (result["ok"], result["failures"]) == (IMAGES - len(gone), {"not_found": len(gone)})
    frame = rows_of(bucket, "stormy")
    assert frame["uri"].n_unique() == len(frame) == IMAGES
    lost = frame.filter(pl.col("status") == "failed")
    assert {uri.rpartition("/")[2] for uri in lost["uri"]} == gone
    is_there = ~pl.col("uri").is_in(lost["uri"].implode())
    assert_same(frame.filter(is_there), reference.filter(is_there))
    assert tlray("verify", f"{bucket}/stormy").returncode == 0


def test_a_run_of_which_most_images_fail_ends_at_once_and_loses_nothing(
    lake: tuple[S3Server, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, bucket = lake
    monkeypatch.setattr(read_spec, "BATCH_BYTES", 20 * 160 * 160 * 3)
    for module in ("run.workplace", "in_process"):  # so many units and one are fetched at once
        monkeypatch.setattr(f"tlray.extraction.{module}.usable_cores", lambda: 2)
    odd = ("1.jpg", "3.jpg", "4.jpg", "5.jpg", "7.jpg", "9.jpg")

    def deny_odd(request: Request) -> Fault | None:
        return "denied" if request.key.endswith(odd) else None

    with FaultProxy(server.endpoint, deny_odd) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        message = error_of(tlray(*run(bucket, "burst", "--max-failed-fraction", "0.02")), 3)
        assert "fetch_failed), more than max_failed_fraction=0.02" in message
        assert proxy.requests < IMAGES / 2, "most images were not even asked for"
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    frame = rows_of(bucket, "burst")
    failed = frame.filter(pl.col("status") == "failed")
    assert 0.02 * IMAGES < len(failed) < len(frame) < IMAGES / 2
    assert all(uri.endswith(odd) for uri in failed["uri"])
    result = result_of(tlray(*run(bucket, "burst")))
    assert (result["ok"], result["failed"]) == (IMAGES - len(frame) + len(failed), 0)
    assert rows_of(bucket, "burst")["uri"].n_unique() == IMAGES


def test_a_store_that_goes_away_ends_the_run_without_failed_rows(
    lake: tuple[S3Server, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, bucket = lake
    monkeypatch.setattr(read_spec, "BATCH_BYTES", 20 * 160 * 160 * 3)
    monkeypatch.setattr(retry, "PATIENCE_SECONDS", 2.0)
    # So that the last commit, which cannot succeed, does not outlast this test.
    monkeypatch.setattr(delta, "RETRIES", {"max_retries": "1", "retry_timeout": "1s"})
    monkeypatch.setattr(table, "COMMIT_ATTEMPTS", 1)
    photos = 0

    def leave(request: Request) -> Fault | None:
        nonlocal photos
        photos += "/photos/" in request.key
        return "reset" if photos > IMAGES // 2 else None

    with FaultProxy(server.endpoint, leave) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        outcome = tlray(*run(bucket, "away"))
    assert outcome.returncode == 1 and "run the same command again" in outcome.stderr
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    result = result_of(tlray(*run(bucket, "away")))
    assert (result["listed"], result["failed"], result["changed"]) == (IMAGES, 0, 0)
    frame = rows_of(bucket, "away")
    assert frame["uri"].n_unique() == len(frame) == IMAGES and set(frame["status"]) == {"ok"}
