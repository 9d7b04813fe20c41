"""A disk or an object store without room: one line that names the place and says what to do, and the next run goes on."""

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault_proxy import FaultProxy
from tests.photos import RECIPE, SHORT_LEASE, error_of, frame_of, result_of, tlray, write_photos
from tlray.cli import command
from tlray.demo.s3_server import S3Server
from tlray.errors import StorageError
from tlray.lake.storage.open import open_store
from tlray.lake.table import table


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory, of a MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tlray-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_the_next_run_goes_on(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "COMMIT_ATTEMPTS", 1)  # what fitted cannot be committed either; that is tried for a minute
    write_photos(tmp_path / "photos", 2)
    run = ["extract", "--local", "--source.uri", tmp_path / "photos", "--table", small_disk / "t", *SHORT_LEASE, *RECIPE]
    result_of(tlray(*run))
    write_photos(tmp_path / "photos", 400, first=10)
    with (small_disk / "ballast").open("wb", buffering=0) as ballast:
        with contextlib.suppress(OSError):
            while ballast.write(bytes(4096)):
                pass
        ballast.truncate(ballast.tell() - 24 * 1024)  # room for the log, not for the parts
    with pytest.raises(StorageError, match=r"the disk is full .No space left on device.; make room there, then run the same"):
        open_store(f"file://{small_disk}").write(f"file://{small_disk}/t/x", bytes(100 * 1024))
    assert f"file://{small_disk}/t" in error_of(tlray(*run), 1)
    (small_disk / "ballast").unlink()
    assert result_of(tlray(*run))["listed"] == 402
    frame = frame_of(small_disk / "t")
    assert frame["uri"].n_unique() == len(frame) == 402 and set(frame["status"]) == {"ok"}


def test_a_full_disk_elsewhere_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/var/tmp/x")

    monkeypatch.setattr(command, "_run", fill)
    message = error_of(tlray("show", "t"), 1)
    assert message == (
        "tlray show: the disk /var/tmp/x is full (No space left on device); make room there, then run the same command again: "
        "it goes on from the last commit"
    )


@pytest.mark.s3
def test_a_full_object_store_is_named(s3_env: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultProxy(s3_env.endpoint, lambda request: "full") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with pytest.raises(StorageError, match=rf"{s3_bucket}/x: the object store is full .*; make room there, then run"):
            open_store(s3_bucket).write(f"{s3_bucket}/x", b"x")
    assert proxy.requests == 1
