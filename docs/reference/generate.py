"""Writes the reference of commands and keys from the configs themselves, while the documentation is built."""

import json
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tlray.cli import COMMANDS

PAGE = "reference/commands.md"

HEAD = """# Commands and keys

Made from the code. A key of a section has a dot: in YAML it is nested (`source: {uri: ...}`), as a flag it is
`--source.uri`, in Python `source={"uri": ...}`. On the command line `-` stands for `_`. `tlray COMMAND --help` shows the same
with the short spellings. `--config FILE` reads keys from YAML, flags win over it, and `--print-config` prints the result.
"""


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a config with its field, those of its sections dotted."""
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            yield prefix + name, field
        else:
            yield from keys_of(section, f"{prefix}{name}.")


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The model of a nested section, also of one that may be left out."""
    return next(
        (each for each in (annotation, *get_args(annotation)) if isinstance(each, type) and issubclass(each, BaseModel)), None
    )


def type_of(annotation: Any) -> str:
    """A type as a reader of the reference writes it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_of(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(type_of(each) for each in arguments if each is not NoneType))
    if origin is tuple:
        inner = type_of(arguments[0])
        return f"list of {inner}" if Ellipsis in arguments else f"{len(arguments)} of {inner}"
    return {str: "text", int: "integer", float: "number", bool: "yes or no"}.get(
        annotation, getattr(annotation, "__name__", str(annotation))
    )


def default_of(field: FieldInfo) -> str:
    """The default as YAML has it, or `required`."""
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is None or value == ():
        return ""
    return f"`{json.dumps(value)}`"


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, command in COMMANDS.items():
        summary = " ".join((command.config.__doc__ or "").split())
        parts.append(f"\n## tlray {name}\n\n{summary}\n\n| key | type | default | |\n|---|---|---|---|")
        for key, field in keys_of(command.config):
            meaning = (field.description or "").replace("|", "\\|")
            parts.append(f"| `{key}` | {type_of(field.annotation)} | {default_of(field)} | {meaning} |")
    return "\n".join(parts) + "\n"


if __name__ == "<run_path>":  # as mkdocs-gen-files runs it
    import mkdocs_gen_files

    with mkdocs_gen_files.open(PAGE, "w") as file:
        file.write(page())
