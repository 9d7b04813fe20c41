"""Parts of which rows go or get other values: a worker writes each again, however often a run comes back to it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tlray.errors import TableCorruptError
from tlray.extraction.plan.plan import StaleRows
from tlray.lake.table.parts import Part
from tlray.lake.table.rewrite import Submit, part_without


@dataclass(frozen=True)
class _Rewritten:
    """What this run has made of a part that the table had when it began.

    Attributes:
        part: the one that holds the rows that are left of it; None where none are.
        gone: positions, in the original part, of the rows that are not in it any more; sorted.
    """

    part: Part | None
    gone: np.ndarray


@dataclass(frozen=True)
class Rewriting:
    """Parts that were written again, and wait for their commit.

    Attributes:
        removed: what goes from the table.
        made: what they are now, by the path that they had when the run began.
    """

    removed: Sequence[Part]
    made: Mapping[str, _Rewritten]

    @property
    def kept(self) -> list[Part]:
        """The parts that take the place of those that go."""
        return _parts(each.part for each in self.made.values())


@dataclass
class Rewrites:
    """What a run has made of the parts that it found.

    Attributes:
        submit: has a worker write a part again.
        table_uri: of the table.
        recipe_id: of the table (`RecipeFile.table_id`).
        run_id: begins the files' names.
    """

    submit: Submit
    table_uri: str
    recipe_id: str
    run_id: str
    _made: dict[str, _Rewritten] = field(default_factory=dict)

    def without(self, stale: Sequence[StaleRows]) -> Rewriting:
        """Have parts written again as rows of them go or get other values, each by a worker.

        Args:
            stale: of each part once.
        """
        calls = []
        for one in stale:
            found = self._found(one.part)
            if found.part is None:
                raise TableCorruptError(f"rows of {one.part.path} were to go, but this run removed it already; report it")
            keep_B = np.ones(found.part.rows, bool)
            keep_B[one.rows - np.searchsorted(found.gone, one.rows)] = False
            options: dict[str, Any] = {"stem": f"{self.run_id}-kept", "recipe_id": self.recipe_id}
            if one.values is not None:
                options["other"] = (one.revalued - np.searchsorted(found.gone, one.revalued), one.values)
            calls.append(self.submit(part_without, self.table_uri, found.part, keep_B, **options))
        made = {
            one.part.path: _Rewritten(call.result(), np.union1d(self._found(one.part).gone, one.rows))
            for one, call in zip(stale, calls, strict=True)
        }
        return Rewriting(_parts(self._found(one.part).part for one in stale), made)

    def are_committed(self, rewriting: Rewriting) -> None:
        """Note that the rewritten parts are what the table holds now."""
        self._made |= rewriting.made

    def _found(self, part: Part) -> _Rewritten:
        """What this run has made of a part so far: the part itself, if nothing yet."""
        return self._made.get(part.path, _Rewritten(part, np.empty(0, np.uint32)))


def _parts(parts: Iterable[Part | None]) -> list[Part]:
    return [part for part in parts if part is not None]
