import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tlray.errors import TableLockedError
from tlray.lake.lease import hold

HOLDER = """
import sys, time
from tlray.lake.lease import hold
with hold(sys.argv[1], "dead", seconds=float(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def another_holder(folder: Path, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a table for a lease of so many seconds."""
    command = [sys.executable, "-c", HOLDER, f"file://{folder}/t", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_living_holder_is_named(tmp_path: Path) -> None:
    """At its first renewal; one of a lease of seconds comes in time on a busy machine too."""
    with another_holder(tmp_path, 6) as holder:
        said = rf"run dead \(process {holder.pid} on .*, since 20.*UTC\)"
        with pytest.raises(TableLockedError, match=said), hold(f"file://{tmp_path}/t", "second"):
            pass


def test_a_killed_holder_keeps_others_out_for_its_lease_only(tmp_path: Path) -> None:
    with another_holder(tmp_path, 0.6):
        pass
    began = time.monotonic()
    with hold(f"file://{tmp_path}/t", "second"):
        assert time.monotonic() - began > 0.6


def test_a_stopped_holder_has_lost_the_table(tmp_path: Path) -> None:
    first = hold(f"file://{tmp_path}/t", "first", seconds=0.2)
    lease = first.__enter__()
    lease.heartbeat = lambda: None  # type: ignore[method-assign]
    with hold(f"file://{tmp_path}/t", "second"), pytest.raises(TableLockedError, match=r"run second .* took over"):
        lease.check()
    first.__exit__(None, None, None)


def test_an_end_frees_the_table_at_once(tmp_path: Path) -> None:
    for error in (None, KeyError):
        with contextlib.suppress(KeyError), hold(f"file://{tmp_path}/t", "first"):
            if error:
                raise error
        began = time.monotonic()
        with hold(f"file://{tmp_path}/t", "second"):
            assert time.monotonic() - began < 20
    assert len(list((tmp_path / "t" / "_lease").iterdir())) == 1


def test_of_many_one_holds_at_a_time(tmp_path: Path) -> None:
    inside, most = [], []

    def work(number: int) -> None:
        with hold(f"file://{tmp_path}/t", f"run{number}", wait=True, seconds=3.0) as lease:
            inside.append(number)
            most.append(len(inside))
            lease.heartbeat()
            lease.check()
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] * 6


def test_on_s3_as_well(s3_bucket: str) -> None:
    uri = f"{s3_bucket}/t"
    with hold(uri, "first", seconds=6.0), pytest.raises(TableLockedError, match="run first"), hold(uri, "second"):
        pass
    with hold(f"{s3_bucket}/t", "third") as lease:
        lease.check()
