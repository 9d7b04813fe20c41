"""Where in a file a network's tensors are: below the keys that trainers wrap them in, behind the prefixes that they leave."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tlray.models.weights.digest import State

_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "net.", "network.", "visual.", "image_encoder.")
"""Left before all names by DataParallel, `torch.compile`, Lightning and the modules that people put networks into; asked for
where a file has other names than the network, which only the library can convert."""

_LEAST_SHARE = 0.5
"""The share of a network's names that a place in a file must have: fewer are there by chance (`norm.weight` is in any)."""

TOP = "top"
"""Name of the place that no key leads to."""

Tables = Mapping[str, State]
"""Tensors by name, for each place in a file that has some; see `tlray.models.weights.files.WeightsFile`."""


@dataclass(frozen=True)
class Candidate:
    """Tensors of a file that may be a network's.

    Attributes:
        place: keys and prefix that lead to them, joined by dots; empty at the top of the file.
        state: by the names that follow.
    """

    place: str
    state: State

    @property
    def name(self) -> str:
        """What a user calls the place."""
        return self.place or TOP


def find_candidates(tables: Tables, names: Collection[str]) -> list[Candidate]:
    """The places at which a file has most of a network's names.

    Any prefix counts, known or not: a place is what stands before the names.

    Args:
        tables: of the file.
        names: of the network's tensors.

    Returns:
        Those with at least as many of the names as half of what the best one has; none where that is too few.
    """
    wanted, counts = frozenset(names), Counter[tuple[str, str]]()
    for place, table in tables.items():
        for key in table:
            counts.update((place, key[:start]) for start in _starts(key) if key[start:] in wanted)
    most = max(counts.values(), default=0)
    if most < _LEAST_SHARE * len(wanted):
        return []
    found = [(place, prefix) for (place, prefix), count in counts.items() if count >= _LEAST_SHARE * most]
    return [_candidate(place, prefix, tables[place]) for place, prefix in found]


def wrapped_tables(tables: Tables) -> list[Candidate]:
    """The places that hold tensors, without the known prefixes that most of their names share; for names of other libraries."""
    candidates = []
    for place, table in tables.items():
        prefix = ""
        while known := _shared_prefix(table, prefix):
            prefix += known
        candidates.append(_candidate(place, prefix, table))
    return candidates


def chosen(candidates: Iterable[Candidate], names: Sequence[str]) -> list[Candidate]:
    """Those candidates that a user names: by their place, or by the keys that it begins with."""
    return [one for one in candidates if all(f"{one.name}.".startswith(f"{name}.") for name in names)]


def _starts(key: str) -> Iterator[int]:
    """Where names may begin in a key: at its start and after each dot."""
    start = 0
    while start >= 0:
        yield start
        dot = key.find(".", start)
        start = dot + 1 if dot >= 0 else -1


def _shared_prefix(table: State, prefix: str) -> str | None:
    inside = [key for key in table if key.startswith(prefix)]
    for known in _PREFIXES:
        if 2 * sum(key.startswith(prefix + known) for key in inside) > len(inside):
            return known
    return None


def _candidate(place: str, prefix: str, table: State) -> Candidate:
    state = {key[len(prefix) :]: tensor for key, tensor in table.items() if key.startswith(prefix)}
    return Candidate(f"{place}.{prefix}".strip("."), state)
