"""The plan: what a run has to do so that the table holds what the source lists. Pure data, made before any work.

`tlray.extraction.plan.compare` holds the listing against the table; `tlray.extraction.plan.backlog` makes units of what is to
be done.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from tlray.lake.table.parts import Part

IMAGE_BYTES = 100_000
"""A guess at the size of an image in a shard, to tell about how many there are; ImageNet's have 110 kB on average."""


@dataclass(frozen=True)
class Unit:
    """A slice of the plan that becomes one part (a shard: a few parts, committed together).

    Attributes:
        index: its number in the plan.
        items: uri, etag, size_bytes, label of its images, or the one row of a shard.
    """

    index: int
    items: pa.Table


@dataclass(frozen=True)
class StaleRows:
    """Rows of a part that are replaced or deleted, or that get other values in columns that travel.

    Attributes:
        part: the part that holds them, as the run found it; the committer knows what it has become since.
        rows: their positions in it, in order.
        revalued: positions of rows that stay and get other values.
        values: these, in the same order; None where there are none.
    """

    part: Part
    rows: np.ndarray
    revalued: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint32))
    values: pa.Table | None = None


@dataclass(frozen=True)
class Where:
    """The places of N rows in the table: which part each is in, and where in it.

    Attributes:
        part: index of the part, uint32.
        row: position in it, uint32.
    """

    part: np.ndarray
    row: np.ndarray

    def take(self, positions: np.ndarray) -> "Where":
        """The places of images at some positions of the plan."""
        return Where(self.part[positions], self.row[positions])

    @staticmethod
    def concat(some: "Sequence[Where]") -> "Where":
        """The places of several, one after the other."""
        empty = np.empty(0, np.uint32)
        return Where(np.concatenate([empty, *(one.part for one in some)]), np.concatenate([empty, *(one.row for one in some)]))


@dataclass(frozen=True)
class StaleItems:
    """Items that the table holds and that are embedded again, with the rows that they replace.

    Attributes:
        items: their listing, N rows of PAGE_SCHEMA.
        count: old rows of each, N.
        where: the old rows, those of one item after those of the other.
    """

    items: pa.Table
    count: np.ndarray
    where: Where


@dataclass(frozen=True)
class Revalued:
    """Rows that are written again with other values in columns that travel, and with the vectors that they have.

    Attributes:
        values: N rows of these columns.
        where: the rows, N.
    """

    values: pa.Table
    where: Where

    @staticmethod
    def none() -> "Revalued":
        """Nothing to write again."""
        return Revalued(pa.table({}), Where.concat([]))


@dataclass(frozen=True)
class Group:
    """Units and stale rows that must be committed together, so that no reader sees an image twice or not at all.

    Attributes:
        units: indexes of units whose rows replace stale ones.
        stale: what goes at the same moment.
    """

    units: tuple[int, ...]
    stale: tuple[StaleRows, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a run does, cut for the workers at hand.

    Attributes:
        kind: what an item is: an image, or a file that holds images.
        units: the work.
        groups: how it is committed; each unit is in exactly one.
        todo: items to embed.
        todo_bytes: their size, as far as the listing says it.
        unsized: items whose size it does not say.
    """

    kind: str
    units: Sequence[Unit]
    groups: Sequence[Group]
    todo: int
    todo_bytes: int
    unsized: int = 0

    @property
    def about_images(self) -> int:
        """About how many images there are to embed."""
        return self.todo if self.kind == "images" else self.todo_bytes // IMAGE_BYTES
