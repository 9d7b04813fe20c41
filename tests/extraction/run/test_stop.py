"""SIGTERM in the middle of a run: the table is sound, the exit code says that the same command goes on, and it does."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import polars as pl
import pytest

from tests.extraction.test_in_process import assert_same
from tests.photos import RECIPE, complaints, frame_of, photo, result_of, tlray
from tests.ray_cluster import RayCluster
from tlray.errors import StoppedError
from tlray.extraction.run.stop import Stop

IMAGES = 1600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stop")
    photos = [photo(number, (32, 24)) for number in range(50)]
    (folder / "photos").mkdir()
    for number in range(IMAGES):
        (folder / "photos" / f"{number:05d}.jpg").write_bytes(photos[number % 50])
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> pl.DataFrame:
    result_of(tlray(*command(folder, "reference"), "--local"))
    return frame_of(folder / "reference")


def command(folder: Path, table: str) -> list[str]:
    return ["extract", "--source.uri", str(folder / "photos"), "--table", str(folder / table), *RECIPE]


WAITING = """
import contextlib, pathlib, sys, time
from tlray.cli import script
from tlray.extraction.run.run import Run
make, at_work = Run._pieces, pathlib.Path(sys.argv.pop())
def pieces_and_wait(*arguments):
    with contextlib.closing(make(*arguments)) as pieces:
        for number, piece in enumerate(pieces):
            if number == 2:
                at_work.touch()
            if number == 5:
                time.sleep(3600)
            yield piece
Run._pieces = pieces_and_wait
script()
"""
"""A command that makes a file when it has two pieces of a table, and at five waits for its end."""


def stop_and_go_on(folder: Path, table: str, mode: str, reference: pl.DataFrame) -> None:
    at_work = folder / f"{table}-at-work"
    arguments = [sys.executable, "-c", WAITING, *command(folder, table), mode, str(at_work)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not at_work.exists():
        time.sleep(0.02)
    began = time.monotonic()
    for _ in range(2):  # `timeout` and process groups deliver two
        process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate()
    print(f"{mode}: ended {time.monotonic() - began:.1f} s after SIGTERM")
    assert process.returncode == 4, stderr
    (line,) = complaints(stderr)
    assert not stdout and "Traceback" not in stderr
    assert line.startswith("tlray extract: StoppedError: asked to stop (SIGTERM)") and "run the same command again" in line
    done = len(frame_of(folder / table))
    assert 0 < done < IMAGES
    assert tlray("verify", folder / table).returncode == 0
    result = result_of(tlray(*command(folder, table), "--local"))
    assert (result["unchanged"], result["new"]) == (done, IMAGES - done)
    assert_same(frame_of(folder / table), reference)


@pytest.mark.slow
def test_one_process(folder: Path, reference: pl.DataFrame) -> None:
    stop_and_go_on(folder, "local", "--local", reference)


@pytest.mark.slow
@pytest.mark.ray
def test_on_ray(folder: Path, reference: pl.DataFrame, ray_cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.address)
    stop_and_go_on(folder, "on-ray", "--no-local", reference)


class TestStop:
    def test_it_raises_where_the_run_is_and_gives_the_signal_back(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(StoppedError), Stop() as stop:
            stop.check()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        assert signal.getsignal(signal.SIGTERM) is before

    def test_it_waits_for_what_holds_it(self) -> None:
        done = []
        with pytest.raises(StoppedError), Stop() as stop, stop.held(), stop.held():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("inner")
        assert done == ["inner"]

    def test_a_second_signal_does_not_break_the_cleaning_up(self) -> None:
        cleaned = []
        with pytest.raises(StoppedError), Stop():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
                cleaned.append(True)
        assert cleaned

    def test_another_handler_is_overridden_again(self) -> None:
        with pytest.raises(StoppedError), Stop() as stop:
            signal.signal(signal.SIGTERM, lambda number, frame: None)
            stop.listen()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    def test_outside_the_main_thread_it_does_nothing(self) -> None:
        before, failed = signal.getsignal(signal.SIGTERM), []

        def use() -> None:
            try:
                with Stop() as stop, stop.held():
                    stop.check()
            except BaseException as error:  # noqa: BLE001
                failed.append(error)

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert not failed and signal.getsignal(signal.SIGTERM) is before
