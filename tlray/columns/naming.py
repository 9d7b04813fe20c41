"""Which column a name means, and what is said where it means none."""

import difflib
from collections.abc import Collection, Mapping


def meant(name: str, known: Collection[str]) -> str | None:
    """The name that is meant: the same one, or else the only one that differs in capital letters alone."""
    if name in known:
        return name
    alike = [each for each in known if each.lower() == name.lower()]
    return alike[0] if len(alike) == 1 else None


def no_column(what: str, name: str, types: Mapping[str, str]) -> str:
    """The message about a name that means none.

    Args:
        what: has the columns: `the index`.
        name: as it was given.
        types: of the columns that there are, by name.
    """
    near = difflib.get_close_matches(name, types, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    there = ", ".join(f"{known} ({word})" for known, word in types.items()) or "none"
    return f"{what} has no column {name}; {hint}it has {there}"
