"""How a command's config is read: flags or keyword arguments over a YAML file, with one-line errors that name the key."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from tlray.config.keys import short_names
from tlray.config.problems import Spelling, one_line
from tlray.errors import ConfigError, ObjectNotFoundError, StorageError

Config = TypeVar("Config", bound=BaseModel)

MAX_FILE_BYTES = 16 * 2**20
"""A job's file has some dozens of lines; whoever names an image or a table by mistake is told so before it is loaded."""


class _Loader(yaml.SafeLoader):
    """YAML with the whole numbers of its version 1.2 (10.3.2): to 1.1, 18:30 is a number of minutes and 0600 an octal one."""


_INT = "tag:yaml.org,2002:int"
_WHOLE_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$")

_Loader.yaml_implicit_resolvers = {
    first: [(tag, _WHOLE_NUMBER if tag == _INT else pattern) for tag, pattern in resolvers]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_config(
    model: type[Config],
    given: Mapping[str, Any],
    *,
    file: str | os.PathLike[str] | None = None,
    spelling: Spelling | None = None,
) -> Config:
    """Read a command's config from a file and what is given over it.

    Args:
        model: what is expected.
        given: values by key: nested mappings, dotted names or short spellings; they win over the file's.
        file: path or URI (s3://...) of a YAML file with the same keys.
        spelling: how the user at hand gives a key, for error messages; default by its dotted name.

    Raises:
        ConfigError: an unknown key, a wrong value, a key that is given twice, or an unreadable file.
    """
    content = {} if file is None else nested(model, _read_yaml(os.fspath(file)))
    merged = _merged(content, nested(model, given))
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(one_line(error, model, merged, spelling or Spelling())) from error


def to_yaml(config: BaseModel) -> str:
    """A config as the YAML file that gives it again."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def nested(model: type[BaseModel], given: Mapping[str, Any]) -> dict[str, Any]:
    """Bring keys to the shape of the config: dotted names and short spellings become nested mappings.

    Args:
        model: of the config.
        given: values by key. Paths stand for their text, NumPy's values for Python's, a config model for the keys that it
            was made with.

    Raises:
        ConfigError: a key is given twice, by two of its spellings.
    """
    short = short_names(model)
    tree: dict[str, Any] = {}
    for name, value in given.items():
        for key, leaf in _leaves(short.get(name, str(name)), _plain(value)):
            _put(tree, key, leaf)
    return tree


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Values by dotted name; an empty mapping stays one, as a section may be named without a key of it."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner)
    else:
        yield name, value


def _put(tree: dict[str, Any], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{name} and a value for the whole of its section {section} are both given; give one")
    if last not in tree:
        tree[last] = value
    elif value != {}:
        raise ConfigError(f"{name} is given twice: {tree[last]!r} and {value!r}; give it once")


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, BaseModel):
        return _plain({name: getattr(value, name) for name in value.model_fields_set})
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inner) for inner in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        before: Any = merged.get(name)
        is_section = isinstance(before, dict) and isinstance(value, dict)
        merged[name] = _merged(before, value) if is_section else value
    return merged


def _read_yaml(file: str) -> dict[str, Any]:
    try:
        content = yaml.load(_read_text(file), _Loader)  # noqa: S506  # a safe one
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{file} is not YAML: {_problem(error)}; expected keys and values such as `table: s3://lake/x`"
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds {type(content).__name__}, expected keys and values such as `table: s3://lake/x`")
    return content


def _problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    return where + " ".join(str(getattr(error, "problem", None) or error).split())


def _read_text(file: str) -> str:
    from tlray.lake.storage.open import open_store  # not needed for `--help`
    from tlray.lake.storage.uri import to_uri

    try:
        uri = to_uri(file)
        return open_store(uri).read(uri, max_bytes=MAX_FILE_BYTES).data.decode("utf-8")
    except ObjectNotFoundError as error:
        raise ConfigError(f"cannot read --config {file}: there is no such file; expected a YAML file") from error
    except (StorageError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read --config {file}: {error}; expected a YAML file") from error
