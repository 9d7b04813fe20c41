"""The report of two tables: how they differ in recipe, rows and vectors."""

from typing import Any

from tlray.lake.table.row_identities.diff import contrast
from tlray.lake.table.table import Table
from tlray.reports.parts import charts
from tlray.reports.parts.page import Block, Chart, Page, Rows, Section, Text, number


def page_of(first: Table, second: Table) -> Page:
    """The report of two tables side by side."""
    found = contrast(first, second)
    recipes = [_sides(line) for line in found["recipes"]]
    blocks: list[Block] = (
        [Rows(["field", "first, second"], recipes)]
        if recipes
        else [Text("Both were made by the same recipe: their vectors mean the same.", "good")]
    )
    rows = found["rows"]
    bars = [
        ("in both", rows["both"]),
        ("in the first alone", rows["first"]),
        ("in the second alone", rows["second"]),
        ("in both, other bytes", rows["etag"]),
        ("in both, another label", rows["label"]),
        ("in both, failed in one", rows["failed"]),
    ]
    chart = charts.bars([(name, float(count), f"{count:,}") for name, count in bars], what="Rows")
    sections = [
        Section("The two", [Rows(["", "table", "version"], [_row("first", first), _row("second", second)], frozenset({2}))]),
        Section("Recipes", blocks),
        Section("Rows", [Chart(chart, "Images by where they are.")]),
        Section("Vectors of the same images", _cosines(found["cosine"])),
    ]
    headline = [
        ("in both", number(rows["both"])),
        ("first alone", number(rows["first"])),
        ("second alone", number(rows["second"])),
    ]
    return Page("Two tables compared", f"{first.uri} and {second.uri}", sections, headline)


def _row(name: str, table: Table) -> list[str]:
    return [name, table.uri, number(table.version)]


def _sides(line: str) -> list[str]:
    """A line of `Recipe.differences` as cells."""
    field, _, values = line.partition(": ")
    return [field, values]


def _cosines(cosines: dict[str, Any]) -> list[Block]:
    if not cosines:
        return [Text("They have no column of vectors of the same length in common, or no image of the same bytes.")]
    rows = [[column, number(one["rows"]), f"{one['mean']:.6f}", f"{one['least']:.6f}"] for column, one in cosines.items()]
    return [
        Rows(["column", "images", "mean cosine", "least cosine"], rows, frozenset({1, 2, 3})),
        Text("Of a sample of images whose bytes are the same in both; near 1 means that the numbers agree."),
    ]
