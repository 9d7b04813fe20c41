"""What a command makes depends on some of its keys: which these are, and whether two commands make the same thing.

Identities are kept in the documents of what was made (a model's card). A key that a later version of tlray adds takes its
default there, so that a new key orphans nothing that exists.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python


@dataclass(frozen=True)
class NotIdentity:
    """Marks a key, in `Annotated`, whose value does not change what a command makes: `out`, say, or `wait`."""


NOT_IDENTITY = NotIdentity()
"""For `Annotated`: `wait: Annotated[bool, NOT_IDENTITY] = False`."""


def is_identity(field: FieldInfo) -> bool:
    """Whether the value of a config's key decides what a command makes."""
    return not any(isinstance(mark, NotIdentity) for mark in field.metadata)


def identity_of(config: BaseModel) -> dict[str, Any]:
    """The keys of a config that decide what a command makes, and their values as JSON has them.

    Two commands make the same thing where these are equal: `out`, say, is not among them.
    """
    return completed(config.model_dump(mode="json"), type(config))


def completed(document: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """An identity that some version of tlray wrote, as this one writes it.

    A key that came later takes its default, so that what was made before it is still recognised.

    Args:
        document: a config as JSON, of an older version perhaps.
        model: the config's class.

    Returns:
        The document without the keys that do not matter, sections likewise. A key without default that is missing stays so,
        and one that is unknown here stays.
    """
    whole = dict(document)
    for name, field in model.model_fields.items():
        if not is_identity(field):
            whole.pop(name, None)
            continue
        if name not in whole and not field.is_required():
            whole[name] = to_jsonable_python(field.get_default(call_default_factory=True))
        section = section_of(field.annotation)
        if section is not None and isinstance(whole.get(name), Mapping):
            whole[name] = completed(whole[name], section)
    return whole


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the keys in which two identities differ."""
    found = []
    for name in {**ours, **theirs}:
        one, other = ours.get(name), theirs.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differences(one, other, f"{prefix}{name}.")
        elif one != other:
            found.append(prefix + name)
    return found


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The model of a nested section, also of one that may be left out."""
    candidates = (annotation, *get_args(annotation))
    return next((each for each in candidates if isinstance(each, type) and issubclass(each, BaseModel)), None)
