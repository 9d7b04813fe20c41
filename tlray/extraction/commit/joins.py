"""Small parts on their way to their final size: the driver says which are joined, workers do it while the run goes on.

A worker writes a part for each unit, of a few hundred images. Those that are not committed yet are joined before they ever are,
where a whole part's worth of them comes quickly; those that had to be committed as they were are exchanged for the joined one
later. Either way the small parts of a first backfill are never many, however long it goes on.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

from tlray.errors import TlrayError, first_line
from tlray.lake.table.parts import Part
from tlray.lake.table.rewrite import Submit, is_whole, join_parts, wholes
from tlray.progress import say

MOST_SMALL_PARTS = 128
"""Small parts of one status that wait to be joined: from so many on they are, though they do not make a whole part yet."""


@dataclass(frozen=True)
class Joining:
    """Small parts that workers are joining to larger ones.

    Attributes:
        sources: the small parts.
        units: how many units wait for it to be committed; 0 where the sources are committed already.
        futures: of the joined parts, each of one status.
    """

    sources: Sequence[Part]
    units: int
    futures: "Sequence[Future[Part]]"

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it is under way any more."""
        return all(future.done() for future in self.futures)

    def result(self) -> list[Part] | None:
        """The joined parts; None where they could not be made, and the small ones have to do."""
        try:
            return [future.result() for future in self.futures]
        except TlrayError as error:  # nothing depends on a join, and the next run tries again
            say(f"{len(self.sources)} small parts stay as they are, as joining them failed: {first_line(error)}")
            return None


@dataclass
class Joins:
    """What is being joined, and what is to be.

    Attributes:
        submit: has a worker do it.
        table_uri: of the table.
        recipe_id: of the table (`RecipeFile.table_id`).
        run_id: begins the files' names, for people who look at the folder.
    """

    submit: Submit
    table_uri: str
    recipe_id: str
    run_id: str
    _small: dict[str, list[Part]] = field(default_factory=lambda: {"ok": [], "failed": []})
    _under_way: list[Joining] = field(default_factory=list)

    def start(self, parts: Sequence[Part], *, units: int) -> None:
        """Have parts of units joined that are not committed yet."""
        groups = [group for status in self._small for group in wholes([part for part in parts if part.status == status])]
        self._under_way.append(Joining(parts, units, [self._join(group) for group in groups]))

    def committed(self, parts: Sequence[Part]) -> None:
        """Parts are in the table now; small ones among them are exchanged when enough have come."""
        for part in parts:
            if not is_whole(part.rows, part.size_bytes):
                self._small[part.status].append(part)
        for status, small in self._small.items():
            if is_enough(small):
                self._exchange(status)

    def exchange_left(self, least: int) -> None:
        """Exchange what is left of small parts, be it little, where there are at least so many of a status."""
        for status, small in self._small.items():
            if len(small) >= least:
                self._exchange(status)

    def _exchange(self, status: str) -> None:
        groups = list(wholes(self._small[status]))
        self._small[status] = groups.pop() if len(groups) > 1 and not is_enough(groups[-1]) else []
        for group in groups:
            if len(group) > 1:
                self._under_way.append(Joining(group, 0, [self._join(group)]))
            else:
                self._small[status] += group

    def _join(self, parts: Sequence[Part]) -> "Future[Part]":
        if len(parts) == 1:
            as_it_is: Future[Part] = Future()
            as_it_is.set_result(parts[0])
            return as_it_is
        stem = f"{self.run_id}-joined"
        return self.submit(join_parts, self.table_uri, list(parts), stem=stem, recipe_id=self.recipe_id)

    def ended(self) -> Iterator[Joining]:
        """Those that have ended since the last call."""
        ended = [each for each in self._under_way if each.has_ended]
        self._under_way = [each for each in self._under_way if not each.has_ended]
        yield from ended

    def abandon(self) -> Iterator[Joining]:
        """Wait for none any more: those under way whose units are not committed yet."""
        under_way, self._under_way = self._under_way, []
        yield from (each for each in under_way if each.units)

    def wait(self) -> None:
        """Wait until no joining is under way."""
        wait([future for each in self._under_way for future in each.futures])

    @property
    def units(self) -> int:
        """Units whose parts are being joined before they are committed."""
        return sum(each.units for each in self._under_way)


def is_enough(parts: Sequence[Part]) -> bool:
    """Whether small parts of one status are worth joining now: they make a whole one, or are too many to wait."""
    rows, size_bytes = sum(part.rows for part in parts), sum(part.size_bytes for part in parts)
    return is_whole(rows, size_bytes) or len(parts) >= MOST_SMALL_PARTS
