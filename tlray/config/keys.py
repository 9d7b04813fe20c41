"""The keys of a config: dotted names, short spellings, types in words; YAML, flags, Python and the documents share them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_NUMBER_WORDS = {int: ("a whole number", "whole numbers"), float: ("a number", "numbers"), str: ("text", "texts")}
_COUNTS = {2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Key:
    """One key of a config, a leaf of its tree.

    Attributes:
        name: dotted, from the command's config down, such as `recipe.precision.compute`.
        field: pydantic's description of it.
        required: whether a config without it is refused.
    """

    name: str
    field: FieldInfo
    required: bool

    @property
    def description(self) -> str:
        """What it means, in a line; empty where its name says it."""
        return self.field.description or ""

    @property
    def default(self) -> Any:
        """What it is when nobody gives it; None for a key without a default."""
        return None if self.field.is_required() else self.field.get_default(call_default_factory=True)

    @cached_property
    def alternatives(self) -> tuple[Any, ...]:
        """The types that its value may have, None left out."""
        return tuple(each for each in _alternatives(self.field.annotation) if each is not NoneType)

    @property
    def is_switch(self) -> bool:
        """Whether it is true or false."""
        return self.alternatives == (bool,)

    @property
    def is_list(self) -> bool:
        """Whether it takes several values, always or as one of its alternatives."""
        return any(get_origin(each) is tuple for each in self.alternatives)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that it may have, or each of its values if it is a list; empty where they are not a closed set."""
        (first, *others) = self.alternatives
        if others:
            return ()
        if get_origin(first) is tuple:
            first = get_args(first)[0]
        return tuple(map(str, get_args(first))) if get_origin(first) is Literal else ()

    @property
    def words(self) -> str:
        """Its type as an error message says it: `a whole number`, `three numbers`, `one of avg, max`."""
        return " or ".join(dict.fromkeys(map(_in_words, self.alternatives)))


def _alternatives(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for each in get_args(annotation):
            yield from _alternatives(each)
    else:
        yield annotation


def _in_words(annotation: Any) -> str:
    (annotation,) = _alternatives(annotation)
    if annotation is bool:
        return "true or false"
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    if get_origin(annotation) is tuple:
        items = get_args(annotation)
        (item,) = _alternatives(items[0])
        if items[-1] is Ellipsis:
            return f"a list of {_NUMBER_WORDS[item][1]}" if item in _NUMBER_WORDS else f"a list, each {_in_words(item)}"
        return f"{_COUNTS[len(items)]} {_NUMBER_WORDS[item][1]}"
    return _NUMBER_WORDS[annotation][0]


@cache
def keys_of(model: type[BaseModel]) -> dict[str, Key]:
    """All keys of a config by their dotted names, in the order of its fields; those of its sections among them."""
    return {key.name: key for key in _keys(model, "", required=True)}


def _keys(model: type[BaseModel], prefix: str, *, required: bool) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        is_required = required and field.is_required()
        section = section_of(field)
        if section is None:
            yield Key(prefix + name, field, is_required)
        else:
            yield from _keys(section, f"{prefix}{name}.", required=is_required)


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a nested section, also of one that may be left out; None for a leaf."""
    found = _alternatives(field.annotation)
    return next((each for each in found if isinstance(each, type) and issubclass(each, BaseModel)), None)


@cache
def short_names(model: type[BaseModel]) -> dict[str, str]:
    """Short spellings: the last word of a dotted key or section, where no other one of the config ends so.

    Returns:
        Dotted name by short spelling: `backbone` stands for `recipe.backbone`, `precision` for `recipe.precision`.
    """
    by_last: dict[str, set[str]] = {}
    for key in keys_of(model):
        for name in (key, *_ancestors(key)):
            by_last.setdefault(name.rpartition(".")[2], set()).add(name)
    return {last: name for last, (name, *others) in by_last.items() if not others and name != last}


def _ancestors(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
