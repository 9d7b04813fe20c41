"""Which rows may be found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Filter:
    """Which rows may be found: those with one of the labels, and whose URI begins with one of the prefixes.

    Labels and prefixes are compared character by character: a comma, a bracket or a star in one has no meaning.

    Attributes:
        labels: empty means any.
        prefixes: empty means any.
    """

    labels: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.labels or self.prefixes)
