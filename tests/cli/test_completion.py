"""Completion: the script of each shell is one that this shell takes, and bash completes by it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.photos import error_of, tlray
from tlray.cli.completion import SHELLS

COMPLETE = """
source {script}
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
COMP_LINE="${{COMP_WORDS[*]}}"; COMP_POINT=${{#COMP_LINE}}
$(complete -p tlray | sed 's/.*-F \\([^ ]*\\).*/\\1/')
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("completion")
    paths = {}
    for shell in SHELLS:
        outcome = tlray("completion", shell)
        assert outcome.returncode == 0
        paths[shell] = folder / f"tlray.{shell}"
        paths[shell].write_text(outcome.stdout)
    return paths


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_takes_it(shell: str, scripts: dict[str, Path]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", str(scripts[shell])], check=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tlray ext", {"extract"}),
        ("tlray extract --backb", {"--backbone"}),
        ("tlray extract --recipe.back", {"--recipe.backbone"}),
        ("tlray search --by", {"--by-label"}),
        ("tlray train --no-reb", {"--no-rebuild"}),
    ],
)
def test_bash_completes(words: str, expected: set[str], scripts: dict[str, Path]) -> None:
    code = COMPLETE.format(script=scripts["bash"], words=words)
    output = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert set(output.stdout.split()) == expected, output.stderr


def test_choices_are_completed(scripts: dict[str, Path]) -> None:
    code = COMPLETE.format(script=scripts["bash"], words="tlray extract --pool a")
    assert subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["avg"]


@pytest.mark.parametrize("words", [[], ["csh"], ["bash", "zsh"]])
def test_another_shell(words: list[str]) -> None:
    assert "expected one of bash, zsh, fish" in error_of(tlray("completion", *words))
