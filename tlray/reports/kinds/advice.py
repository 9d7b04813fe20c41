"""The report of advice: the recommendation, the map with the task on it, and what was measured of each candidate."""

import math
from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import Any

from tlray.advice.verdict.scenario import SCENARIOS
from tlray.progress import readable_seconds
from tlray.reports.parts import charts
from tlray.reports.parts.page import Block, Chart, Code, Facts, Gallery, Page, Rows, Section, Text, facts, number
from tlray.reports.parts.pictures import Pictures, Wish

Advice = Mapping[str, Any]

_NAMES = {
    "head": "head on fixed features",
    "freeze": "first layers frozen",
    "fine-tune": "all fine-tuned",
    "scratch": "from scratch",
}
_TONES = {"recommended": "good", "cannot tell": "plain", "nothing": "bad"}
_CORNER_CHARACTERS = 20
"""The length of a line in a corner of the map."""

_MOST_LABELS = 10_000


def page_of(advice: Advice, pictures: int) -> Page:
    """The report of what `tlray advise` found.

    Args:
        advice: the JSON object of `tlray advise`.
        pictures: how many of each kind at most.
    """
    if advice.get("dry_run"):
        return Page("Advice: what it would cost", advice["source"], [Section("Estimate", [facts(dict(advice))])])
    made = Pictures()
    sections = [
        Section("The advice", list(_verdict(advice))),
        Section("Where the task lies", list(_map(advice))),
        Section("Ways to train", list(_strategies(advice))),
        Section("Networks and layers", list(_candidates(advice))),
        Section("Would more labels help?", list(_curve(advice))),
        Section("Odd labels and images", list(_oddities(advice, pictures, made))),
        Section("The sample", [facts({"source": advice["source"], **advice["sample"], "seconds": advice["seconds"]})]),
    ]
    best = advice["recommendation"]
    headline = [("verdict", advice["verdict"]), ("images", number(advice["sample"]["images"]))]
    if best is not None:
        expected = best["expected_accuracy"]
        headline += [
            ("expected accuracy", f"{expected['value']:.3f}"),
            ("interval", f"{expected['low']:.3f} to {expected['high']:.3f}"),
        ]
    return Page("Advice: which network, and how to train it", advice["source"], sections, headline)


def _verdict(advice: Advice) -> Iterator[Block]:
    text = advice["reason"]
    yield Text(f"{text[0].upper()}{text[1:]}.", _TONES[advice["verdict"]])
    best = advice["recommendation"]
    if best is not None:
        yield Facts(
            [
                ("recommended", f"{_NAMES[best['strategy']]}: {best['candidate']}"),
                ("layer", best["layer"]),
                ("cost here", f"about {readable_seconds(best['cost_seconds'])} for all labelled images"),
            ]
        )
        yield Code(best["commands"])
    for one in advice["left_out"].items():
        yield Text(f"Left out: {one[0]}: {one[1]}.")
    for one in advice["not_tried"]:
        yield Text(f"No result of {_NAMES[one['strategy']]}, {one['candidate']}: {one['reason']}.")


def _map(advice: Advice) -> Iterator[Block]:
    scenario, likeness = advice["scenario"], advice["likeness"]
    if scenario["likeness"] is None:
        yield Text("No pretrained network was tried, so how like the task is to its pretraining is not known.")
        return
    labels = scenario["labels_per_class"]
    x = min(1.0, max(0.0, math.log10(max(labels, 1)) / math.log10(_MOST_LABELS)))
    y = max(scenario["likeness"], 0.0)
    chart = charts.quadrants(x, y, _corners(), x_label="labels a class", y_label="like the pretraining", mark="this task")
    yield Chart(
        chart, f"{labels:,.0f} labels a class; {scenario['map_says']}. The map is the textbooks'; what was measured decides."
    )
    rows = [("share of raw pixels' errors that pretrained features avoid", number(scenario["likeness"]))]
    if likeness["confidence"] is not None:
        rows.append((f"mean confidence of {likeness['candidate']}'s own classifier", number(likeness["confidence"])))
        rows.append(("classes that it uses", number(likeness["classes_used"])))
    yield Facts(rows)


def _corners() -> list[str]:
    """What the map says in its corners, from the top left on, in lines that fit in."""
    order = [(amount, kind) for kind in ("like", "unlike") for amount in ("little", "much")]
    texts = [[f"{amount} data, {kind}", *wrap(SCENARIOS[amount, kind], _CORNER_CHARACTERS)] for amount, kind in order]
    return ["\n".join(lines) for lines in texts]


def _strategies(advice: Advice) -> Iterator[Block]:
    rows = [
        (f"{_NAMES[one['strategy']]}: {one['candidate']}", *_ends(one["expected_accuracy"])) for one in advice["strategies"]
    ]
    floors = advice["floors"]
    marks = [("largest class", floors["majority"]["value"]), ("raw pixels, linear", floors["pixels_linear"]["value"])]
    yield Chart(charts.intervals(rows, marks, what="Expected accuracy"), "Expected accuracy with its 95 % interval.")
    cells = [
        [_NAMES[one["strategy"]], one["candidate"], one["layer"], f"{one['expected_accuracy']['value']:.3f}",
         f"{one['measured_accuracy']:.3f}", number(one["images_measured"]), readable_seconds(one["cost_seconds"])]
        for one in advice["strategies"]
    ]  # fmt: skip
    yield Rows(["way", "network", "layer", "expected", "measured", "on images", "cost here"], cells, frozenset({3, 4, 5, 6}))


def _ends(estimate: Mapping[str, float]) -> tuple[float, float, float]:
    return estimate["low"], estimate["value"], estimate["high"]


def _candidates(advice: Advice) -> Iterator[Block]:
    lines = [
        charts.Line(
            one["candidate"], [layer["depth"] for layer in one["layers"]], [layer["linear"]["value"] for layer in one["layers"]]
        )
        for one in advice["candidates"]
        if len(one["layers"]) > 1
    ]
    if lines:
        chart = charts.lines(lines[:4], x="depth of the layer", y="accuracy of a linear head")
        yield Chart(
            chart, "Layer by layer: where the curve bends down, later layers serve the pretraining more than this task."
        )
    cells = [_layer_cells(one, layer) for one in advice["candidates"] for layer in one["layers"]]
    headings = ["network", "layer", "linear", "20-NN", "LogME", "H-score", "LEEP", "images", "race"]
    yield Rows(headings, cells, frozenset(range(2, 8)))


def _layer_cells(one: Mapping[str, Any], layer: Mapping[str, Any]) -> list[str]:
    """A layer of a candidate as a row of the table."""
    return [
        one["candidate"],
        layer["layer"],
        f"{layer['linear']['value']:.3f}",
        f"{layer['knn']['value']:.3f}",
        f"{layer['logme']:.3f}",
        f"{layer['h_score']:.2f}",
        number(None) if one["leep"] is None else f"{one['leep']:.2f}",
        number(one["images"]),
        "" if one["dropped_after"] is None else f"out after {one['dropped_after']}",
    ]


def _curve(advice: Advice) -> Iterator[Block]:
    points = advice["learning_curve"]
    if len(points) < 2:
        yield Text("There are too few labels a class for a curve.")
        return
    xs = [one["labels_per_class"] for one in points]
    lows, ys, highs = zip(*(_ends(one["accuracy"]) for one in points), strict=True)
    chart = charts.lines([charts.Line("best head", xs, ys, lows, highs)], x="labels a class", y="accuracy", log_x=True)
    yield Chart(chart, "A curve that still rises at its end says that more labels would help.")


def _oddities(advice: Advice, pictures: int, made: Pictures) -> Iterator[Block]:
    data = advice["data"]
    copies, suspects = data["near_duplicates"], data["suspected_labels"]
    sizes = list(data["class_sizes"].items())
    yield Facts(
        [
            ("classes", f"{len(sizes):,}, from {sizes[-1][1]:,} ({sizes[-1][0]}) to {sizes[0][1]:,} ({sizes[0][0]}) images"),
            ("near-duplicates", f"{copies['images']:,} images in {copies['groups']:,} groups"),
            ("groups of several labels", number(copies["conflicting_labels"])),
            ("groups across splits", number(copies["across_splits"])),
            ("labels that are probably wrong", number(suspects["count"])),
        ]
    )
    if suspects["examples"] and pictures:
        wishes = [
            Wish(one["uri"], None, f"{one['label']}, or {one['suggested']}?", "bad") for one in suspects["examples"][:pictures]
        ]
        yield Gallery(made.shots(wishes), "Labels to look at, the surest first")
    if copies["examples"] and pictures:
        wishes = [Wish(one["uri"], None, one["label"]) for group in copies["examples"] for one in group[:2]][:pictures]
        yield Gallery(made.shots(wishes), "Near-duplicates, pair by pair")
