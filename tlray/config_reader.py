"""How a command's config is read: flags over a YAML file, with one-line errors that name the key."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from tlray.errors import ConfigError

Config = TypeVar("Config", bound=BaseModel)


def load_config(model: type[Config], arguments: Sequence[str], *, file: Path | None, program: str) -> Config:
    """Read a command's config.

    Args:
        model: what is expected.
        arguments: flags.
        file: YAML with the same keys; flags win.
        program: name for the help text.

    Raises:
        ConfigError: an unknown key, a wrong value or an unreadable file.
    """
    content = {} if file is None else _read_yaml(file)

    class Settings(model, BaseSettings):  # type: ignore[misc, valid-type]
        model_config = SettingsConfigDict(
            extra="forbid",
            frozen=True,
            cli_prog_name=program,
            cli_kebab_case=True,
            cli_implicit_flags=True,
            cli_hide_none_type=True,  # else a bool that may be null gets no --no-
        )

        @classmethod
        def settings_customise_sources(  # neither the environment nor files that the user did not name
            cls, settings_cls: type[BaseSettings], *_: PydanticBaseSettingsSource, **__: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            flags = CliSettingsSource[Any](settings_cls, cli_parse_args=list(arguments), cli_exit_on_error=False)
            return flags, InitSettingsSource(settings_cls, content)

    Settings.__doc__ = model.__doc__
    try:
        settings = Settings()
    except ValidationError as error:
        raise ConfigError(_one_line(error, model)) from error
    except SettingsError as error:
        raise ConfigError(f"{_flag_problem(str(error), model)}; `{program} --help` lists the flags") from error
    return model.model_validate(settings.model_dump())


def to_yaml(config: BaseModel) -> str:
    """A config as the YAML file that gives it again."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read --config {file}: {error}; expected a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds {type(content).__name__}, expected keys and values such as `table: s3://lake/x`")
    return content


def _flag_problem(text: str, model: type[BaseModel]) -> str:
    _, unrecognized, flags = text.partition("unrecognized arguments: ")
    if text.startswith("error parsing value"):
        return f"{text}: a value that begins with [ or {{ is read as JSON; write such a glob as '/[0-9]/'"
    if not unrecognized:
        return text.removeprefix("error parsing CLI: ")
    flag = flags.split()[0]
    near = difflib.get_close_matches(flag.lstrip("-").replace("-", "_"), _keys(model), 1)
    return f"unknown flag {flag}" + (f"; did you mean --{near[0].replace('_', '-')}?" if near else "")


def _one_line(error: ValidationError, model: type[BaseModel]) -> str:
    problems = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _keys(model)
            near = difflib.get_close_matches(key, known, 1) or [near for near in known if near.endswith("." + key)]
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
            problems.append(f"unknown key {key}; {hint}")
        elif problem["type"] == "missing":
            problems.append(f"{key} is missing; give it in the config file or as --{key.replace('_', '-')}")
        else:
            problems.append(f"{key}: {problem['msg']}, given {problem['input']!r}")
    return "; ".join(problems)


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        keys += [prefix + name] if section is None else _keys(section, f"{prefix}{name}.")
    return keys


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model of a nested section, also of one that may be left out."""
    candidates = (annotation, *get_args(annotation))
    return next((each for each in candidates if isinstance(each, type) and issubclass(each, BaseModel)), None)
