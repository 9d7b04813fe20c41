"""Keyword arguments are the keys of a config: nested, dotted or by their short spelling, checked as flags are."""

import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from tlray.config.keys import short_names
from tlray.config.problems import Spelling
from tlray.config_reader import read_config
from tlray.errors import ConfigError

Config = TypeVar("Config", bound=BaseModel)


def config_of(
    model: type[Config],
    words: Mapping[str, Any],
    keys: dict[str, Any],
    file: str | os.PathLike[str] | None = None,
) -> Config:
    """The config that a call gives.

    Args:
        model: of the command.
        words: the call's own parameters by dotted key; None means not given, what has a `uri` stands for it, and a mapping in
            place of a source's address is the whole section.
        keys: its keyword arguments.
        file: path or URI of a YAML file with the same keys; what the call gives wins.

    Raises:
        ConfigError: as the command line says it.
    """
    given: dict[str, Any] = {}
    for name, value in words.items():
        if value is not None:
            is_section = isinstance(value, Mapping) and "." in name
            given[name.rpartition(".")[0] if is_section else name] = getattr(value, "uri", value)
    for name in given.keys() & keys.keys():
        raise ConfigError(f"{name} is given twice: {given[name]!r} and {keys[name]!r}; give it once")
    spellings = {name: f"{short}=" for short, name in short_names(model).items()}
    spelling = Spelling(of=lambda name: spellings.get(name, name if "." in name else f"{name}="))
    return read_config(model, given | keys, file=file, spelling=spelling)


def texts(name: str, given: str | Iterable[str]) -> tuple[str, ...]:
    """One text or several of them, as they are.

    Args:
        name: of the parameter.
        given: to it.

    Raises:
        ConfigError: something else.
    """
    values = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if not all(isinstance(each, str) for each in values):
        raise ConfigError(f"{name}: expected text or a list of texts, given {given!r}")
    return values
