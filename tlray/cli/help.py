"""Help texts: all commands in a line each; of a command what is required and common on a screen, all of it when asked."""

import shutil
import textwrap
from collections.abc import Iterable
from typing import Any

from tlray.cli.flags import OWN_FLAGS, flags_of, metavar, usage, word_of
from tlray.commands import COMMANDS, Command
from tlray.config.keys import Key, keys_of
from tlray.version import __version__

_WIDEST = 110
_LEFT = 31
"""Columns of what is typed; its meaning stands to the right."""


_OWN_ROWS = [
    *((f"{flag} FILE" if flag in ("--config", "--report") else flag, text) for flag, text in OWN_FLAGS.items()),
    ("--help, --help-all", "these keys; all of them"),
]
_SHORTENED = ("source.", "recipe.")
"""Sections whose keys are shown by their short spelling, as they mean the same in all commands."""

_FEW = 4
"""Up to so many further keys are shown rather than counted."""

Row = tuple[str, str]


def overview() -> str:
    """What `tlray --help` prints: each command with a line."""
    commands = [(name, command.summary) for name, command in COMMANDS.items()]
    commands.append(("completion", "print what makes bash, zsh or fish complete commands and flags"))
    first = [f"tlray {name} {COMMANDS[name].example}" for name in ("extract", "show", "index", "search")]
    return "\n".join(
        [
            "usage: tlray COMMAND ...",
            "",
            *_wrapped("Turn a lake of images into a table of embeddings that can be trusted, kept up to date and reused."),
            "",
            *_rows("commands", commands, left=14),
            "first steps",
            *(f"  {line}" for line in first),
            "",
            f"Version {__version__}. All keys may stand in a YAML file as well, given by --config.",
            "`tlray COMMAND --help` shows the keys of one of these commands.",
        ]
    )


def command_help(name: str, command: Command, *, everything: bool) -> str:
    """`tlray COMMAND --help`, or with everything `tlray COMMAND --help-all`."""
    keys = keys_of(command.config)
    needed = [*(keys[word] for word in command.words), *(key for key in keys.values() if key.required)]
    needed = list({key.name: key for key in needed}.values())
    common = [keys[each] for each in command.common]
    rest = [key for key in keys.values() if key not in needed and key not in common]

    def rows_of(some: Iterable[Key]) -> list[Row]:
        return [_row(key, command, everything=everything) for key in some]

    lines = [
        f"usage: {usage(name, command).partition(' (')[0]} [flags]",
        "",
        *_wrapped(f"{command.summary[0].upper()}{command.summary[1:]}."),
        "",
        *_rows("required, here or in the --config file", rows_of(key for key in needed if key.required)),
        *_rows("words that may be left out", rows_of(key for key in needed if not key.required)),
        *_rows("common", [*rows_of(common), *_OWN_ROWS]),
    ]
    if everything or len(rest) <= _FEW:
        for section in dict.fromkeys(key.name.rpartition(".")[0] for key in rest):
            inside = (key for key in rest if key.name.rpartition(".")[0] == section)
            lines += _rows(section or "others", rows_of(inside))
    elif rest:
        lines += [f"{len(rest)} more keys, by section: tlray {name} --help-all"]
    if any(key.is_list for key in keys.values()):
        lines += _wrapped("A list (...) takes several words, or its flag several times; commas and brackets mean nothing.")
    lines += [f"example: tlray {name} {command.example}"]
    return "\n".join(lines)


def _row(key: Key, command: Command, *, everything: bool) -> Row:
    flags = flags_of(command)[key.name]
    shown = ", ".join(flags) if everything else flags[0] if key.name.startswith(_SHORTENED) else flags[-1]
    if key.name in command.words:
        return f"{word_of(key.name)}, {flags[-1]}", _meaning(key)
    if key.is_switch:
        return f"{shown}, --no-{flags[0].removeprefix('--')}", _meaning(key)
    typed = f"{shown} {metavar(key)}"
    if key.choices and len(typed) > _LEFT - 3:
        return f"{shown} WORD{' ...' if key.is_list else ''}", _meaning(key, f"one of {', '.join(key.choices)}")
    return typed, _meaning(key)


def _meaning(key: Key, choices: str = "") -> str:
    default = (
        "" if key.default in (None, (), False, "") or "default" in key.description else f" (default {_shown(key.default)})"
    )
    return f"{'; '.join(filter(None, (key.description, choices)))}{default}".strip()


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _rows(heading: str, rows: list[Row], left: int = _LEFT) -> list[str]:
    """A headed block of two columns; nothing for no rows."""
    lines = []
    for typed, meaning in rows:
        beside = textwrap.wrap(meaning, _width() - left) or [""]
        if len(typed) > left - 3:
            lines.append(f"  {typed}")
            lines += [" " * left + line for line in beside if line]
        else:
            lines.append(f"  {typed:<{left - 2}}{beside[0]}".rstrip())
            lines += [" " * left + line for line in beside[1:]]
    return [heading, *lines, ""] if rows else []


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _width(), break_on_hyphens=False, break_long_words=False)


def _width() -> int:
    return min(shutil.get_terminal_size().columns, _WIDEST)
