"""Help: what is needed first, the common keys on a screen, all of them when asked; and nothing heavy is imported for it."""

import subprocess
import sys

import pytest

from tests.photos import tlray
from tlray.cli.flags import flags_of
from tlray.commands import COMMANDS
from tlray.config.keys import keys_of

SCREEN_LINES = 45
"""Of 100 columns: half of a laptop's screen, or a window beside an editor."""


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def help_of(*arguments: str) -> list[str]:
    outcome = tlray(*arguments)
    assert outcome.returncode == 0 and not outcome.stderr
    return outcome.stdout.splitlines()


def test_every_command_has_a_line_in_the_overview() -> None:
    lines = help_of("--help")
    for name, command in COMMANDS.items():
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert line == f"  {name:<12}{command.summary}"
    assert help_of("help") == help_of("-h") == help_of() == lines
    assert help_of("version") == help_of("--version")
    assert len(lines) <= SCREEN_LINES and max(map(len, lines)) <= 100


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_fits_on_a_screen_and_names_what_is_needed_first(name: str) -> None:
    lines, command = help_of(name, "--help"), COMMANDS[name]
    assert len(lines) <= SCREEN_LINES and max(map(len, lines)) <= 100
    assert lines[0].startswith(f"usage: tlray {name}")
    headings = [line for line in lines if line and not line.startswith(" ")]
    required = [key.name for key in keys_of(command.config).values() if key.required]
    text = "\n".join(lines)
    needed = text[text.index("required, here or") : text.index("\ncommon\n")]
    for key in required:
        assert any(f"{flag} " in needed or f"{flag}\n" in needed for flag in flags_of(command)[key]), key
    assert headings.index("required, here or in the --config file") < headings.index("common")
    for flag in ("--config FILE", "--print-config", "--json", "--help, --help-all"):
        assert f"  {flag} " in text
    assert help_of("help", name) == lines


@pytest.mark.parametrize("name", COMMANDS)
def test_help_all_has_every_key_by_its_section(name: str) -> None:
    lines = help_of(name, "--help-all")
    typed = {word.strip(",") for line in lines if line.startswith("  ") for word in line.split()}
    for key, flags in flags_of(COMMANDS[name]).items():
        for flag in flags if key not in COMMANDS[name].words else flags[-1:]:
            assert flag in typed, (key, flag)
    sections = {key.rpartition(".")[0] for key in keys_of(COMMANDS[name].config)} - {"", "source", "recipe", "split", "head"}
    assert sections <= {line for line in lines if not line.startswith(" ")}


def test_help_wins_over_errors() -> None:
    assert help_of("extract", "--bakbone", "--help") == help_of("extract", "--help")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["extract", "--help"], ["train", "--help-all"], ["frobnicate"]])
def test_nothing_heavy_is_imported_to_say_what_to_type(arguments: list[str]) -> None:
    heavy = {"torch", "ray", "boto3", "torchvision", "timm", "sklearn", "numpy", "pyarrow", "deltalake", "PIL", "faiss"}
    code = f"import sys; from tlray.cli import main; main({arguments}); print(sorted({heavy} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"
