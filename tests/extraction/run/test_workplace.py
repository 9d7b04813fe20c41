"""Where a run works when nobody says."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.photos import RECIPE, error_of, photo, tlray
from tlray.extraction.run import workplace
from tlray.extraction.run.workplace import works_here


@pytest.fixture(autouse=True)
def laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores, no GPU, no cluster."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("tlray.ray_cluster.address.answers", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(workplace, "usable_cores", lambda: 2)
    monkeypatch.delitem(sys.modules, "ray", raising=False)


def test_a_laptop_needs_no_cluster(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tlray")
    assert works_here(None)
    assert "--no-local" in caplog.text


def test_what_is_said_counts() -> None:
    assert works_here(local=True) and not works_here(local=False)


def test_a_cluster_a_gpu_or_many_cores_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RAY_ADDRESS", "local"), ("RAY_ADDRESS", "ray://somewhere:10001")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert not works_here(None)
            assert works_here(local=True)
    for owner, name, found in (
        ("tlray.ray_cluster.address", "answers", lambda: True),
        ("torch.cuda", "is_available", lambda: True),
        ("tlray.extraction.run.workplace", "usable_cores", lambda: 9),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"{owner}.{name}", found)
            assert not works_here(None)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    assert not works_here(None)


@pytest.mark.parametrize("flag", [["--gpus"], ["--no-gpus"], ["--max-workers", "2"]])
@pytest.mark.parametrize("place", [["--local"], ["--no-local"], []])
def test_what_is_said_of_workers_is_refused_where_no_cluster_is_joined(
    flag: list[str], place: list[str], tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(photo(0, (32, 24)))
    table = tmp_path / "table"
    said = error_of(tlray("extract", "--source.uri", tmp_path, "--table", table, *RECIPE, *flag, *place))
    assert "gpus and max_workers are about workers of a Ray cluster" in said and not table.exists()
