"""The report of an index: what it holds, how good its answers are, and what they take."""

from tlray.progress import readable_size
from tlray.reports.parts import charts
from tlray.reports.parts.page import Chart, Page, Section, Text, facts, number
from tlray.search.versions.card import Card, read_card


def page_of(uri: str) -> Page:
    """The report of the newest version of an index."""
    card = read_card(uri)
    quality = card.quality
    error = 2 * quality.standard_error
    recall = charts.intervals(
        [
            (
                "recall at 10",
                max(0.0, quality.recall_at_10 - error),
                quality.recall_at_10,
                min(1.0, quality.recall_at_10 + error),
            )
        ],
        [(f"target {card.recall_target:g}", card.recall_target)],
        what="Recall",
    )
    times = charts.bars(
        [
            ("one query alone", quality.milliseconds_single, f"{quality.milliseconds_single:.3g} ms"),
            ("one of many at once", quality.milliseconds_batch, f"{quality.milliseconds_batch:.3g} ms"),
        ],
        what="Time of a query",
    )
    reached = quality.recall_at_10 >= card.recall_target
    said = "The recall that was asked for is reached." if reached else "The recall that was asked for is out of reach here."
    stages = [(stage, seconds, f"{seconds:.1f} s") for stage, seconds in card.seconds.items()]
    kinds = [(kind, float(file.size_bytes), readable_size(file.size_bytes)) for kind, file in card.files.items()]
    sections = [
        Section(
            "Recall against time",
            [
                Text(said, "good" if reached else "bad"),
                Chart(recall, f"Measured on {quality.queries:,} rows against exact search, with two standard errors."),
                Chart(times, "Median of single queries, and the mean of all of them at once."),
            ],
        ),
        Section("Why this index", [Text("; ".join(card.reasons) + ".") if card.reasons else Text("It was asked for.")]),
        Section("What building it took", [Chart(charts.bars(stages, what="Seconds by stage"), "Seconds by stage.")]),
        Section("Its files", [Chart(charts.bars(kinds, what="Bytes by kind of file"), "Bytes by kind of file.")]),
        Section("What it is", [facts(_about(card))]),
    ]
    headline = [
        ("rows", number(card.rows)),
        ("recall at 10", f"{quality.recall_at_10:.4f}"),
        ("one query", f"{quality.milliseconds_single:.3g} ms"),
        ("size", readable_size(card.size_bytes)),
    ]
    return Page(f"Index: {card.factory}", uri, sections, headline)


def _about(card: Card) -> dict[str, object]:
    keys = (
        "version",
        "created",
        "table",
        "table_version",
        "column",
        "dimensions",
        "metric",
        "factory",
        "rows",
        "nodes",
        "dead",
    )
    document = card.model_dump(mode="json")
    return {key: document[key] for key in (*keys, "zero_rows", "parameters", "built", "made_with")}
