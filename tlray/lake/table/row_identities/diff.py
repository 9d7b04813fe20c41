"""Two tables side by side: which images each has, and how near their vectors are; in bounded memory."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.lake.table.parts import Part, open_part, vectors_of
from tlray.lake.table.row_identities.external_sort import MEMORY_BYTES, RANGE_ROWS, SortedRuns, cut_ranges
from tlray.lake.table.row_identities.identities import IDENTITY_SCHEMA, ITEM, PART, ROW, identities
from tlray.lake.table.table import Table

SAMPLE_ROWS = 64
"""Shared rows whose vectors are compared: each may be in another part, of which a row group is read."""

_Place = tuple[int, int]
"""Index of a part, row in it."""


def contrast(first: Table, second: Table) -> dict[str, Any]:
    """Compare two tables: their recipes, their rows, and the vectors of a sample of images.

    Returns:
        `recipes`: fields that differ, as (field: first, second); `rows`: live rows of `both`, of the `first` and of the
        `second` alone, and of those in both the ones of another `etag` or `label`, or `failed` in one alone; `cosine`: for each
        embedding column that both have in the same length, `mean` and `least` over a sample of images of the same etag.
    """
    parts = first.parts(), second.parts()
    counts: Counter[str] = Counter(both=0, first=0, second=0, etag=0, label=0, failed=0)
    pairs: list[tuple[_Place, _Place]] = []
    with tempfile.TemporaryDirectory(prefix="tlray-") as scratch:
        sides: list[SortedRuns] = []
        for number, table in enumerate((first, second)):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            rows = identities(table, parts[number])
            memory_bytes = sides[0].memory_bytes if sides else MEMORY_BYTES
            sides.append(SortedRuns(IDENTITY_SCHEMA, ITEM, folder, memory_bytes=memory_bytes).add_all(rows))
        for bound in cut_ranges(sides, RANGE_ROWS):
            pairs += _contrast_range(sides[0].pop_below(bound), sides[1].pop_below(bound), parts, counts)
    recipes = first.recipe_file.recipe, second.recipe_file.recipe
    return {
        "recipes": recipes[0].differences(recipes[1]),
        "rows": dict(counts),
        "cosine": _cosines(first, second, parts, _spread(pairs)),
    }


def _contrast_range(
    one: pa.Table, other: pa.Table, parts: tuple[list[Part], list[Part]], counts: Counter[str]
) -> list[tuple[_Place, _Place]]:
    """Count rows of a range of names; places of some that both have with a vector of the same bytes."""
    at = pc.index_in(one[ITEM], value_set=other[ITEM])
    is_shared = pc.is_valid(at)
    ours, theirs = one.filter(is_shared), other.take(at.filter(is_shared))
    is_ok = [
        np.array([part.status == "ok" for part in some], bool)[rows[PART].to_numpy()]
        for some, rows in zip(parts, (ours, theirs), strict=True)
    ]
    same = np.asarray(pc.equal(pc.fill_null(ours["etag"], ""), pc.fill_null(theirs["etag"], "")), bool)
    labelled = pc.equal(pc.fill_null(ours["label"], ""), pc.fill_null(theirs["label"], ""))
    counts["both"] += len(ours)
    counts["first"] += len(one) - len(ours)
    counts["second"] += len(other) - len(ours)
    counts["etag"] += int(np.count_nonzero(~same))
    counts["label"] += int(np.count_nonzero(~np.asarray(labelled, bool)))
    counts["failed"] += int(np.count_nonzero(is_ok[0] != is_ok[1]))
    chosen = pa.array(_spread(np.flatnonzero(is_ok[0] & is_ok[1] & same).tolist()), pa.int64())
    places = [
        list(zip(rows[PART].to_pylist(), rows[ROW].to_pylist(), strict=True))
        for rows in (ours.take(chosen), theirs.take(chosen))
    ]
    return list(zip(*places, strict=True))


def _spread(some: list[Any]) -> list[Any]:
    """At most SAMPLE_ROWS of a list, evenly spread over it."""
    return [some[at] for at in np.unique(np.linspace(0, len(some) - 1, min(len(some), SAMPLE_ROWS)).astype(int))]


def _cosines(
    first: Table, second: Table, parts: tuple[list[Part], list[Part]], pairs: list[tuple[_Place, _Place]]
) -> dict[str, dict[str, float]]:
    shapes = first.recipe_file.shapes, second.recipe_file.shapes
    columns = [column for column in shapes[0] if np.prod(shapes[0][column]) == np.prod(shapes[1].get(column, (0,)))]
    if not pairs or not columns:
        return {}
    rows = [
        pa.concat_tables(_read_row(table, some[part], row, columns) for part, row in places)
        for table, some, places in zip((first, second), parts, zip(*pairs, strict=True), strict=True)
    ]
    found = {}
    for column in columns:
        one_BD, other_BD = (vectors_of(side[column]).astype(np.float64) for side in rows)
        norms = np.linalg.norm(one_BD, axis=1) * np.linalg.norm(other_BD, axis=1)
        cosines = (one_BD * other_BD).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
        found[column] = {"rows": len(pairs), "mean": round(float(cosines.mean()), 6), "least": round(float(cosines.min()), 6)}
    return found


def _read_row(table: Table, part: Part, row: int, columns: list[str]) -> pa.Table:
    """One row of a part, by reading the row group that it is in."""
    with open_part(table.uri, part.path) as file:
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        ends = np.cumsum(sizes)
        group = int(np.searchsorted(ends, row, "right"))
        return file.read_row_group(group, columns=columns).slice(row - int(ends[group] - sizes[group]), 1)
