"""From a command's keys to flags and back: what stands on a command line becomes values by key, as literal text.

A list takes several words after its flag, or its flag several times; nothing inside a word is syntax: no comma, bracket,
quote or brace. Plain words (`tlray extract SOURCE TABLE`) stand for the keys that the command says, before the flags or
between them, but not after a list.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from tlray.commands import Command
from tlray.config.keys import Key, keys_of, short_names
from tlray.config.problems import Spelling, near_keys
from tlray.errors import ConfigError

_WORDS = "words"

OWN_FLAGS = {
    "--config": "YAML file (a path or s3://...) with the same keys; flags win",
    "--print-config": "show the whole config as YAML, and stop",
    "--json": "the result as one line of JSON, on a terminal too",
    "--report": "write what was done to this .html file too, with pictures",
}
"""The flags that every command has, besides those of its keys."""


@dataclass(frozen=True)
class CommandLine:
    """What was typed after a command's name.

    Attributes:
        given: values by dotted key: text, lists of texts, True or False.
        config: the file that is to be read, or None.
        print_config: show the config instead of running.
        json: print the result as JSON, on a terminal too.
        report: the HTML file that is to be written, or None.
    """

    given: dict[str, Any]
    config: str | None
    print_config: bool
    json: bool
    report: str | None


def flag_of(name: str) -> str:
    """A key's flag: `--recipe.max-image-bytes`, or `-k` for a key of one letter."""
    return f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"


def flags_of(command: Command) -> dict[str, list[str]]:
    """The flags of each key of a command by its dotted name, short spellings first."""
    flags = {name: [flag_of(name)] for name in keys_of(command.config)}
    for short, name in short_names(command.config).items():
        if name in flags and short != "uri":  # of what? `--source.uri` says it
            flags[name].insert(0, flag_of(short))
    return flags


def spelling_of(name: str, command: Command) -> Spelling:
    """How keys are given on the command line of a command."""
    flags = flags_of(command)
    return Spelling(of=lambda key: flags[key][-1] if key in flags else flag_of(key), usage=f"usage: {usage(name, command)}")


def usage(name: str, command: Command) -> str:
    """The shortest call of a command: words and flags without which it does nothing, and what the words stand for."""
    keys, flags = keys_of(command.config), flags_of(command)
    words = [word_of(key) if keys[key].required else f"[{word_of(key)}]" for key in command.words]
    needed = [f"{flags[key.name][0]} {metavar(key)}" for key in keys.values() if key.required and key.name not in command.words]
    stands_for = [f"{word_of(key)} is {flags[key][-1]}" for key in command.words if keys[key].required]
    explained = f" ({', '.join(stands_for)})" if stands_for else ""
    return " ".join(["tlray", name, *words, *needed]) + explained


def word_of(name: str) -> str:
    """What the help calls a plain word: SOURCE for source.uri."""
    return name.removesuffix(".uri").rpartition(".")[2].upper()


_PLACES = frozenset(("alias", "image", "index", "listing", "logs", "model", "other", "out", "queries", "table", "token_file"))
_PLACES |= {"uri", "vector", "weights"}
"""Last words of keys whose values are places: a path or a URI."""


def is_place(key: Key) -> bool:
    """Whether a key's value is a path or a URI."""
    return key.name.rpartition(".")[2] in _PLACES


def metavar(key: Key) -> str:
    """The value of a key, as the help shows it: `TEXT`, `a|b|c`, `N ...`; empty for a switch."""
    if key.is_switch:
        return ""
    if key.choices:
        name = "|".join(key.choices)
    elif "number" in key.words:
        name = "N" if "whole" in key.words else "NUMBER"
    else:
        name = "URI" if is_place(key) else "TEXT"
    return f"{name} ..." if key.is_list else name


def parse(name: str, command: Command, arguments: Sequence[str]) -> CommandLine:
    """Read the arguments after a command's name.

    Raises:
        ConfigError: an unknown flag, a flag without its value, a word too many, or a key that is given twice.
    """
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    add_flags(parser, command)
    found, left = parser.parse_known_intermixed_args([_with_dashes(each) for each in arguments])
    given = dict(vars(found))
    own = {key: given.pop(key) for key in ("config", "print_config", "json", "report")}
    words: list[str] = given.pop(_WORDS, [])
    for each in keys_of(command.config).values():
        if each.is_list and each.choices and given.get(each.name) == ["[]"]:  # one of the choices it cannot be
            given[each.name] = []
    unknown = next((one for one in left if one.startswith("-")), None)
    if unknown is not None:
        raise ConfigError(_unknown_flag(unknown.partition("=")[0], name, command))
    if len(words) > len(command.words):
        raise ConfigError(_word_too_many(words[len(command.words)], arguments, name, command))
    for key, word in zip(command.words, words, strict=False):
        if key in given:
            raise ConfigError(f"{key} is given twice: {word!r} (as {word_of(key)}) and {given[key]!r}; give it once")
        given[key] = word
    return CommandLine(given, **own)


def add_flags(parser: argparse.ArgumentParser, command: Command) -> list[tuple[Key | None, argparse.Action]]:
    """Add a command's words and flags to a parser; what is not given is to be absent from its result.

    Returns:
        What was added, with the key that it stands for; None for the words and `--config`.
    """
    words = " ".join(map(word_of, command.words))
    added: list[tuple[Key | None, argparse.Action]] = [
        (None, parser.add_argument(_WORDS, nargs="*", default=[], metavar=words)),
        (None, parser.add_argument("--config", default=None, metavar="FILE", action=_Once, help=OWN_FLAGS["--config"])),
    ]
    added.append(
        (None, parser.add_argument("--report", default=None, metavar="FILE", action=_Once, help=OWN_FLAGS["--report"]))
    )
    for flag in ("--print-config", "--json"):
        parser.add_argument(flag, action="store_true", default=False, help=OWN_FLAGS[flag])
    flags = flags_of(command)
    for key in keys_of(command.config).values():
        options: dict[str, Any] = {"dest": key.name, "help": (key.description or key.words).replace("%", "%%")}
        if key.is_switch:
            options |= {"action": _Switch}
        elif key.is_list:
            options |= {"action": "extend", "nargs": "+", "metavar": word_of(key.name)}
        else:
            options |= {"action": _Once, "metavar": word_of(key.name)}
        added.append((key, parser.add_argument(*flags[key.name], **options)))
    return added


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        flag, _, said = message.removeprefix("argument ").partition(": ")
        spellings = flag.split("/")
        flag = next((each for each in reversed(spellings) if not each.startswith("--no-")), spellings[-1])
        if said.startswith("expected"):
            said += f"; a value that begins with - is written {flag}=-VALUE"
        if said.startswith("ignored explicit argument"):
            said = f"takes no value; {flag.replace('--', '--no-', 1)} says no"
        raise ConfigError(f"{flag}: {said}" if said else message)


class _Once(argparse.Action):
    """Store a value; a second one is refused, as the first one would be lost without a word."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest, None)
        if before is not None:
            parser.error(f"argument {option}: given twice, {before!r} and {values!r}; give it once")
        setattr(namespace, self.dest, values)


class _Switch(argparse.BooleanOptionalAction):
    """`--x` and `--no-x`; both at once are refused."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest, None)
        super().__call__(parser, namespace, values, option)
        if before not in (None, getattr(namespace, self.dest)):
            parser.error(f"argument {option}: both it and its opposite are given; give one")


def _with_dashes(argument: str) -> str:
    """`--max_image_bytes` is `--max-image-bytes`: keys have one spelling in files and another one on the command line."""
    flag, equals, value = argument.partition("=")
    return f"{flag.replace('_', '-')}{equals}{value}" if flag.startswith("--") else argument


def _unknown_flag(flag: str, name: str, command: Command) -> str:
    near = near_keys(command.config, flag.lstrip("-").replace("-", "_"), spelling_of(name, command))
    hint = f"`tlray {name} --help-all` lists the flags" if near.startswith("known keys") else near
    return f"unknown flag {flag}; {hint}; usage: {usage(name, command)}"


def _word_too_many(word: str, arguments: Sequence[str], name: str, command: Command) -> str:
    before = arguments[list(arguments).index(word) - 1]
    if word.lower() in ("true", "false", "yes", "no", "none", "null") and before.startswith("--"):
        return f"{before} takes no value, given {word!r}; {before.replace('--', '--no-', 1)} says no"
    return f"a word too many: {word!r}; usage: {usage(name, command)}"
