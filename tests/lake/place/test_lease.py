import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.wrong_clocks import WrongClocks
from tlray.errors import TableLockedError
from tlray.lake.place import lease as lease_module
from tlray.lake.place.lease import Lease, hold

HOLDER = """
import sys, time
from tlray.lake.place import lease
lease.RENEWALS = int(sys.argv[3])
with lease.hold(sys.argv[1], "dead", seconds=float(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""
LONG_LEASE = 600.0, 1200
"""Seconds, and renewals in them: so long that no machine misses it, and renewed so often that it is soon seen to be."""


@pytest.fixture
def long_lease(monkeypatch: pytest.MonkeyPatch) -> float:
    """Its seconds, with its renewals."""
    seconds, renewals = LONG_LEASE
    monkeypatch.setattr(lease_module, "RENEWALS", renewals)
    return seconds


@contextlib.contextmanager
def another_holder(
    folder: Path, seconds: float, renewals: int = lease_module.RENEWALS, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a table for a lease of so many seconds; `env` is what its environment has besides."""
    command = [sys.executable, "-c", HOLDER, f"file://{folder}/t", str(seconds), str(renewals)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_living_holder_is_named(tmp_path: Path) -> None:
    """At its first renewal."""
    with another_holder(tmp_path, *LONG_LEASE) as holder:
        said = rf"run dead \(process {holder.pid} on .*, since 20.*UTC\)"
        with pytest.raises(TableLockedError, match=said), hold(f"file://{tmp_path}/t", "second"):
            pass


def test_a_killed_holder_keeps_others_out_for_its_lease_only(tmp_path: Path) -> None:
    with another_holder(tmp_path, 0.6):
        pass
    began = time.monotonic()
    with hold(f"file://{tmp_path}/t", "second"):
        assert time.monotonic() - began > 0.6


@pytest.mark.parametrize("hours", [1, -1])
def test_a_holder_whose_clock_is_an_hour_off_holds_as_long_as_any_other(tmp_path: Path, hours: int) -> None:
    clock = WrongClocks(tmp_path).off_by(3600 * hours)
    with another_holder(tmp_path, *LONG_LEASE, env=clock):
        since = f"since {datetime.now(UTC) + timedelta(hours=hours):%Y-%m-%d %H:}"
        with pytest.raises(TableLockedError, match=f"{since}.*which is alive"), hold(f"file://{tmp_path}/t", "second"):
            pass
    with another_holder(tmp_path / "dies", 0.6, env=clock):
        pass
    began = time.monotonic()
    with hold(f"file://{tmp_path}/dies/t", "second"):
        assert 0.6 < time.monotonic() - began < 600


def test_a_stopped_holder_has_lost_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease, "heartbeat", lambda _: None)
    first = hold(f"file://{tmp_path}/t", "first", seconds=0.2)
    lease = first.__enter__()
    with hold(f"file://{tmp_path}/t", "second"), pytest.raises(TableLockedError, match=r"run second .* took over"):
        lease.check()
    first.__exit__(None, None, None)


def test_an_end_frees_the_table_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("the second one waited"))
    for error in (None, KeyError):
        with contextlib.suppress(KeyError), hold(f"file://{tmp_path}/t", "first"):
            if error:
                raise error
        with hold(f"file://{tmp_path}/t", "second"):
            pass
    assert len(list((tmp_path / "t" / "_lease").iterdir())) == 1


def test_of_many_one_holds_at_a_time(tmp_path: Path, long_lease: float) -> None:
    inside, most = [], []

    def work(number: int) -> None:
        with hold(f"file://{tmp_path}/t", f"run{number}", wait=True, seconds=long_lease) as lease:
            inside.append(number)
            most.append(len(inside))
            lease.heartbeat()
            lease.check()
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6


def test_on_s3_as_well(s3_bucket: str, long_lease: float) -> None:
    uri = f"{s3_bucket}/t"
    with hold(uri, "first", seconds=long_lease), pytest.raises(TableLockedError, match="run first"), hold(uri, "second"):
        pass
    with hold(f"{s3_bucket}/t", "third") as lease:
        lease.check()
