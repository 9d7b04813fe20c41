"""What is on stdout: one JSON object for programs, a few lines for people on a terminal."""

import contextlib
import io
import json
import logging
from pathlib import Path

import pytest

from tests.photos import RECIPE, result_of, tlray, write_photos
from tlray.cli import main


class Terminal(io.StringIO):
    """Text that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def on_a_terminal(*arguments: str | Path) -> tuple[str, str]:
    stdout, stderr = Terminal(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        assert main([str(argument) for argument in arguments]) == 0
    return stdout.getvalue(), stderr.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    folder = tmp_path_factory.mktemp("summary")
    write_photos(folder / "photos", 4)
    (folder / "photos" / "bad.jpg").write_bytes(b"")
    return [
        "extract",
        folder / "photos",
        folder / "t",
        "--local",
        "--labels",
        "folder",
        *RECIPE,
        "--max-failed-fraction",
        "0.5",
    ]


def test_a_terminal_gets_a_summary_and_json_when_asked(run: list[str | Path]) -> None:
    plan, _ = on_a_terminal(*run, "--dry-run")
    assert plan.startswith("dry run, nothing is written: 5 listed, 5 new")
    said, logs = on_a_terminal(*run)
    assert said.startswith("4 images embedded, 1 failed (1 empty)\nsource: 5 listed, 5 new, 0 changed")
    assert f"table: file://{run[2]}, version " in said and "{" not in said
    assert "--json" in logs.splitlines()[-1]
    shown, _ = on_a_terminal("show", run[2])
    assert f"table: file://{run[2]}" in shown and "backbone: timm:test_resnet" in shown
    as_json, _ = on_a_terminal("show", run[2], "--json")
    assert json.loads(as_json) == result_of(tlray("show", run[2]))
    index = Path(str(run[2])).parent / "i"
    result_of(tlray("index", run[2], index))
    found, _ = on_a_terminal("search", index, "--by-label", "cat", "-k", "2")
    assert found.splitlines()[0] == "cat" and len(found.splitlines()) == 3 and "photos/cat/" in found


def test_a_command_leaves_logging_as_it_was(run: list[str | Path]) -> None:
    loggers = [logging.getLogger(name) for name in ("tlray", "ray.data", "ray.data._internal.progress")]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    outcome = tlray(*run)
    assert "nothing to do" in outcome.stderr
    assert [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers] == before
