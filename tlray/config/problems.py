"""What is wrong with a config, in one line that names the key, what was given and what was expected."""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from tlray.config.keys import Key, keys_of, short_names

_SHOWN_CHARACTERS = 200
"""How much of a wrong value is shown: enough to know it again."""


@dataclass(frozen=True)
class Spelling:
    """How the user at hand gives a key.

    Attributes:
        of: a key's spelling by its dotted name: `--recipe.backbone`.
        usage: how the required ones are given, to be added where one is missing.
    """

    of: Callable[[str], str] = str
    usage: str = ""


def one_line(error: ValidationError, model: type[BaseModel], given: dict[str, Any], spelling: Spelling) -> str:
    """What pydantic found, one clause for each key: unknown ones, for which others may be missing, then missing ones.

    Args:
        error: pydantic's.
        model: of the config.
        given: what it was made from.
        spelling: how the user gives a key.
    """
    keys = keys_of(model)
    unknown: list[str] = []
    missing: list[str] = []
    wrong: dict[str, str] = {}
    for problem in error.errors():
        parts = [str(part) for part in problem["loc"]]
        name = ".".join(parts)
        key = next((keys[leaf] for leaf in _prefixes(parts) if leaf in keys), None)
        if problem["type"] == "extra_forbidden" and key is None:
            # flags that are no keys are refused before
            unknown.append(f"unknown key {name}; {near_keys(model, name, Spelling())}")
        elif problem["type"] == "missing" and (key is None or key.name == name):
            missing += [each for each in keys if each == name or (each.startswith(f"{name}.") and _is_needed(keys[each]))]
        elif key is not None:
            wrong.setdefault(key.name, _wrong_value(key, _at(given, key.name), problem["type"], problem["msg"]))
        else:
            wrong[name] = _wrong_section(keys, name, problem["input"], problem["type"], problem["msg"])
    return "; ".join([*unknown, *([_missing(missing, spelling)] if missing else []), *wrong.values()])


def near_keys(model: type[BaseModel], name: str, spelling: Spelling) -> str:
    """What somebody may have meant by a name that is no key: near ones, or those that there are.

    Args:
        model: of the config.
        name: with `_`, dotted.
        spelling: how the user gives a key.
    """
    keys, short = keys_of(model), short_names(model)
    endings = [known for known in keys if known.endswith(f".{name}")]
    if len(endings) > 1:
        return f"it may be {_listed([spelling.of(each) for each in endings], 'or')}: name it in full"
    inside = [known for known in keys if known.startswith(f"{name}.")]
    if inside:
        shown = inside[:1] if _is_needed(keys[inside[0]]) else inside
        return f"{name} is a section: did you mean {_listed([spelling.of(each) for each in shown], 'or')}?"
    sections = {".".join(parts[:end]) for parts in (key.split(".") for key in keys) for end in range(1, len(parts))}
    near = difflib.get_close_matches(name, [*keys, *short, *sorted(sections)], 1, cutoff=0.7) or endings
    if near and near[0] in sections:
        return near_keys(model, near[0], spelling)
    if near:
        return f"did you mean {spelling.of(near[0])}?"
    section = name.rpartition(".")[0]
    siblings = [known for known in keys if known.rpartition(".")[0] == section] or list(keys)
    return f"known keys: {', '.join(map(spelling.of, siblings))}"


def _prefixes(parts: list[str]) -> Iterator[str]:
    for end in range(len(parts), 0, -1):
        yield ".".join(parts[:end])


def _is_needed(key: Key) -> bool:
    """Whether it must be given where its own section is, be the section itself needed or not."""
    return key.field.is_required()


def _at(given: dict[str, Any], name: str) -> Any:
    value: Any = given
    for part in name.split("."):
        value = value[part]
    return value


def _missing(names: list[str], spelling: Spelling) -> str:
    spellings = [spelling.of(name) for name in names]
    one = len(names) == 1
    how = f"; {spelling.usage}" if spelling.usage else ""
    given = (
        "" if spellings == names else f"; give {'it' if one else 'them'} as {_listed(spellings, 'and')}, or in the config file"
    )
    return f"{_listed(names, 'and')} {'is' if one else 'are'} missing{given}{how}"


def _listed(names: list[str], last: str) -> str:
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _wrong_value(key: Key, given: Any, kind: str, message: str) -> str:
    shown = repr(given)
    shown = shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}..."
    if kind in ("value_error", "assertion_error"):
        return f"{key.name}: {message.partition(', ')[2]}, given {shown}"
    if kind.startswith(("greater", "less")) and len(key.alternatives) == 1:
        return f"{key.name}: expected {key.words} {message.removeprefix('Input should be ')}, given {shown}"
    if kind.startswith("string_too") or kind in ("string_pattern_mismatch", "finite_number"):
        return f"{key.name}: {message}, given {shown}"
    quotes = "; write it in quotes" if kind == "string_type" and isinstance(given, (int, float)) else ""
    near = difflib.get_close_matches(given, key.choices, 1) if isinstance(given, str) else []
    return f"{key.name}: expected {key.words}, given {shown}{quotes}" + (f"; did you mean {near[0]}?" if near else "")


def _wrong_section(keys: dict[str, Key], name: str, given: Any, kind: str, message: str) -> str:
    if kind in ("value_error", "assertion_error"):
        return f"{name}: {message.partition(', ')[2]}" if name else message.partition(", ")[2]
    inside = [key for key in keys if key.startswith(f"{name}.")]
    return f"{name}: expected a section with keys such as {inside[0]}, given {given!r}" if inside else f"{name}: {message}"
