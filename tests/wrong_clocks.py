"""Processes whose clock is wrong, as that of a machine is that nobody sets."""

import shutil
import subprocess
from pathlib import Path

import pytest


class WrongClocks:
    """What processes are loaded with whose clock is wrong, compiled in a folder; skips where there is no C compiler.

    Not libfaketime: Debian's 0.9.10 breaks the sleep of Python 3.11, or also sets clocks wrong by which processes wait.
    """

    def __init__(self, folder: Path) -> None:
        compiler, self._library = shutil.which("cc"), folder / "clock_off.so"
        if compiler is None:
            pytest.skip("wrong clocks need a C compiler (cc)")
        source = Path(__file__).with_name("clock_off.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", self._library, source, "-ldl"], check=True)

    def off_by(self, seconds: int) -> dict[str, str]:
        """The environment of processes whose clock is wrong by so much."""
        return {"LD_PRELOAD": str(self._library), "CLOCK_OFF_SECONDS": str(seconds)}
