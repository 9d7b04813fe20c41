"""Completion of commands and flags by a shell, as a script that the user's shell reads."""

import argparse
from typing import Any

from tlray.cli.flags import add_flags, is_place
from tlray.commands import COMMANDS
from tlray.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")
_READ_BY = {
    "bash": 'eval "$(tlray completion bash)"  # in ~/.bashrc',
    "zsh": 'eval "$(tlray completion zsh)"  # in ~/.zshrc, after compinit',
    "fish": "tlray completion fish | source  # in ~/.config/fish/config.fish",
}


def completion(arguments: list[str]) -> str:
    """The script that completes `tlray` in a shell.

    Args:
        arguments: the name of a shell.

    Raises:
        ConfigError: another name, or none.
    """
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        given = f"given {' '.join(arguments)!r}" if arguments else "none is given"
        raise ConfigError(f"expected one of {', '.join(SHELLS)}, {given}; e.g. {_READ_BY['bash']}")
    import shtab

    script: str = shtab.complete(_parser(shtab.FILE), shell=arguments[0])
    return f"# {_READ_BY[arguments[0]]}\n{script}"


def _parser(file: dict[str, Any]) -> argparse.ArgumentParser:
    """The whole command line, with the choices of each key, and where a file is expected."""
    parser = argparse.ArgumentParser("tlray")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        for key, action in add_flags(commands.add_parser(name, help=command.summary), command):
            if key is None or is_place(key):
                action.complete = file  # type: ignore[attr-defined]  # shtab's manner
            elif key.choices:
                action.choices = key.choices
    commands.add_parser("completion", help="print what makes a shell complete").add_argument("shell", choices=SHELLS)
    return parser
