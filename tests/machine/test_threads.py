"""How threads that share a computation wait for each other."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.photos import photo_bytes
from tlray.machine.threads import SPINS, yield_cores


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, str(SPINS)),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_what_the_user_says_counts(given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    yield_cores()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is torch's on Linux")
@pytest.mark.parametrize("command", ["extract", "train"])
def test_a_command_has_said_so_when_torch_is_loaded(command: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(photo_bytes(1, (32, 24)))
    arguments = {
        "extract": [str(tmp_path), str(tmp_path / "table"), "--backbone", "timm:there-is-no-such-network", "--local"],
        "train": [str(tmp_path / "no-table"), str(tmp_path / "model"), "--labels", "no-labels.csv"],
    }[command]
    said = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-m", "tlray", command, *arguments],
        capture_output=True, text=True, check=False, env=said | {"OMP_DISPLAY_ENV": "VERBOSE"}, timeout=600,
    )  # fmt: skip
    read = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)  # by each copy of the library that was loaded
    assert done.returncode == 2 and read and set(read) == {str(SPINS)}, done.stderr
