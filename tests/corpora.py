"""Where the corpora of odd and broken images are; tests that need them skip where they are missing."""

import os
from pathlib import Path

import pytest

_FOLDER = Path(os.environ.get("TLRAY_CORPORA") or Path(__file__).parents[1] / ".." / "shared" / "corpora").resolve()


def corpus(name: str = "") -> Path:
    """The folder of one corpus, or of all; skips the test where it is missing."""
    folder = _FOLDER / name
    if not folder.is_dir():
        pytest.skip(f"no image corpora at {folder}: set TLRAY_CORPORA to their folder")
    return folder


def files(name: str = "") -> list[Path]:
    """All files of one corpus, or of all, in a fixed order; skips the test where there are none."""
    return sorted(path for path in corpus(name).rglob("*") if path.is_file())
