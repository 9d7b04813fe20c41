"""The report of a model: how it was trained, how good it is and where it errs, with its worst mistakes as pictures.

Shape legend: N images of a split, K classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tlray.config import ExamplesConfig, TrainConfig
from tlray.errors import ExamplesError, TlrayError, first_line
from tlray.lake.table.table import Table
from tlray.reports.parts import charts
from tlray.reports.parts.page import Block, Chart, Gallery, Page, Rows, Section, Text, facts, number
from tlray.reports.parts.pictures import Pictures, Wish
from tlray.scoring import probabilities_of
from tlray.training.examples.examples import Split
from tlray.training.examples.metrics import ECE_BINS, Evaluation, OutputRow
from tlray.training.examples.table_vectors import load_vectors
from tlray.training.heads.train_heads import examples_of_table
from tlray.training.model.model import ModelCard, load_model, read_card

MOST_CLASSES = 60
"""Rows of the table of classes, those of the least F1 first."""

MOST_PAIRS = 20

_ESTIMATES = ("accuracy", "top5", "macro_f1", "mean_average_precision", "r2", "mean_squared_error")


def page_of(uri: str, pictures: int) -> Page:
    """The report of a trained model.

    Args:
        uri: of its folder.
        pictures: how many mistakes at most.
    """
    card = read_card(uri)
    name = "test" if "test" in card.metrics else next(iter(card.metrics), "")
    measured = card.metrics.get(name)
    sections = [Section("How good it is", list(_metrics(card)))]
    if card.training.get("history") or card.training.get("grid"):
        sections.append(Section("Training", list(_curves(card))))
    if measured is not None and measured.confusion is not None:
        sections.append(Section(f"What is taken for what ({name} rows)", list(_confusion(measured, card.classes))))
    if card.task == "single":
        sections.append(Section(f"Calibration and mistakes ({name} rows)", list(_predictions(uri, card, name, pictures))))
    if measured is not None and measured.per_class:
        sections.append(Section("Each class" if card.task != "regression" else "Each output", [_per_class(measured.per_class)]))
    about: dict[str, Any] = {"task": card.task, "table": card.table, "table version": card.table_version, "source": card.source}
    about |= {"created": card.created, "counts": card.training.get("counts", {}), "recipe": card.recipe.model_dump(mode="json")}
    sections.append(Section("What made it", [facts({key: value for key, value in about.items() if value is not None})]))
    headline = [(f"{metric} ({name})", f"{one.value:.4g}") for metric, one in _estimates(measured)[:2]] if measured else []
    headline += [("outputs", number(len(card.classes))), ("strategy", str(card.training.get("strategy", "–")))]
    return Page(f"Model: {card.recipe.backbone}", uri, sections, headline)


def _estimates(measured: Evaluation) -> list[tuple[str, Any]]:
    found = [(name.replace("_", " "), getattr(measured, name)) for name in _ESTIMATES]
    return [(name, one) for name, one in found if one is not None]


def _metrics(card: ModelCard) -> Iterator[Block]:
    rows = []
    for split, measured in card.metrics.items():
        rows += [
            [split, number(measured.rows), name, f"{one.value:.4f}", f"{one.low:.4f} to {one.high:.4f}"]
            for name, one in _estimates(measured)
        ]
        rows.append([split, number(measured.rows), "loss", f"{measured.loss:.4f}", ""])
        if measured.ece is not None:
            rows.append([split, number(measured.rows), "calibration error", f"{measured.ece:.4f}", ""])
    yield Rows(["split", "rows", "measure", "value", "95 % interval"], rows, frozenset({1, 3}))
    if "knn" in card.training:
        yield facts({"nearest neighbours on the same vectors": card.training["knn"]})


def _curves(card: ModelCard) -> Iterator[Block]:
    history = card.training.get("history")
    if history:
        epochs = list(range(1, len(history) + 1))
        some = [charts.Line("training loss", epochs, [one["train_loss"] for one in history])]
        measured = [
            (at, one["validation_loss"]) for at, one in zip(epochs, history, strict=True) if one["validation_loss"] is not None
        ]
        if measured:
            some.append(charts.Line("validation loss", [at for at, _ in measured], [loss for _, loss in measured]))
        yield Chart(charts.lines(some, x="epoch", y="loss"), f"The best epoch is {card.training.get('best_epoch')}.")
        right = [(at, one["accuracy"]) for at, one in zip(epochs, history, strict=True) if one["accuracy"] is not None]
        if right:
            line = charts.Line("accuracy of validation rows", [at for at, _ in right], [share for _, share in right])
            yield Chart(charts.lines([line], x="epoch", y="accuracy"), "Share of validation rows that are right.")
    grid = card.training.get("grid") or []
    lines = []
    for column in dict.fromkeys(one["column"] for one in grid):
        points = sorted((one["weight_decay"], one["validation_loss"]) for one in grid if one["column"] == column)
        points = [(max(decay, 1e-9), loss) for decay, loss in points if loss is not None]
        if len(points) > 1:
            lines.append(charts.Line(column, [decay for decay, _ in points], [loss for _, loss in points]))
    if lines:
        chart = charts.lines(lines[:4], x="weight decay", y="validation loss", log_x=True)
        yield Chart(chart, f"{len(grid)} heads; the one that was kept has a weight decay of {grid[0]['weight_decay']:g}.")


def _confusion(measured: Evaluation, classes: Sequence[str]) -> Iterator[Block]:
    assert measured.confusion is not None
    if len(classes) <= charts.MAX_CELLS:
        yield Chart(charts.confusion(measured.confusion, classes), "Rows are true classes, columns what they are taken for.")
    pairs = [
        (count, classes[row], classes[column])
        for row, counts in enumerate(measured.confusion)
        for column, count in enumerate(counts)
        if row != column and count
    ]
    shown = [[true, taken, number(count)] for count, true, taken in sorted(pairs, reverse=True)[:MOST_PAIRS]]
    yield Rows(["true class", "taken for", "rows"], shown, frozenset({2})) if shown else Text("No row is told wrong.", "good")


def _per_class(rows: Sequence[OutputRow]) -> Rows:
    every = ("precision", "recall", "f1", "average_precision", "mean_absolute_error", "r2")
    names = [name for name in every if any(getattr(row, name) is not None for row in rows)]
    ordered = sorted(rows, key=lambda row: row.f1 if row.f1 is not None else 0.0)[:MOST_CLASSES]
    cells = [[row.name, number(row.rows), *(_cell(getattr(row, name)) for name in names)] for row in ordered]
    headings = ["name", "rows", *(name.replace("_", " ") for name in names)]
    return Rows(headings, cells, frozenset(range(1, len(headings))))


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


@dataclass(frozen=True)
class _Predicted:
    """Predictions for the rows of a split."""

    uris: list[str]
    etags: list[str | None]
    targets_N: np.ndarray
    likely_NK: np.ndarray


def _predictions(uri: str, card: ModelCard, split: str, pictures: int) -> Iterator[Block]:
    try:
        found = _predict(uri, card, split)
    except TlrayError as error:
        yield Text(f"The rows cannot be predicted again: {first_line(error)}.")
        return
    if found is None:
        yield Text("Predictions of single rows are made again for heads on a table alone, whose splits are known.")
        return
    sure_N, taken_N = found.likely_NK.max(axis=1), found.likely_NK.argmax(axis=1)
    right_N = taken_N == found.targets_N
    yield _calibration(sure_N, right_N)
    wrong = np.flatnonzero(~right_N)
    if not len(wrong):
        yield Text("No row is told wrong.", "good")
        return
    worst = wrong[np.argsort(-sure_N[wrong], kind="stable")][:pictures]
    wishes = [
        Wish(
            found.uris[row],
            found.etags[row],
            f"{card.classes[found.targets_N[row]]}, taken for {card.classes[taken_N[row]]} ({sure_N[row]:.2f})",
            "bad",
        )
        for row in worst.tolist()
    ]
    yield Gallery(Pictures().shots(wishes), f"The {len(worst)} surest of {len(wrong)} mistakes")


def _predict(uri: str, card: ModelCard, split: str) -> _Predicted | None:
    config = TrainConfig.model_validate(card.config)
    if card.table is None or card.training.get("strategy") != "head" or config.split.group_duplicates is not None:
        return None
    table = Table.open(card.table, card.table_version)
    rows, examples = examples_of_table(table, config.part(ExamplesConfig), config.where, lambda _rows: None)
    positions = examples.positions(Split[split.upper()])
    if examples.classes != tuple(card.classes) or len(positions) != card.metrics[split].rows:
        raise ExamplesError(f"the labels ({config.labels}) have changed since the training, and with them its rows or classes")
    at = examples.rows_N[positions]
    column = table.recipe_file.recipe.columns[card.tap]
    features_ND = load_vectors(rows, column, at)
    with torch.inference_mode():
        scores_NK = load_model(uri).head(torch.from_numpy(features_ND)).numpy()
    items = rows.items.take(pa.array(at))
    return _Predicted(
        items["uri"].to_pylist(), items["etag"].to_pylist(), examples.targets[positions], probabilities_of(scores_NK, "single")
    )


def _calibration(sure_N: np.ndarray, right_N: np.ndarray) -> Chart:
    """Accuracy of rows by how sure they are, in the bins of the calibration error."""
    bins_N = np.minimum((sure_N * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    filled = np.unique(bins_N)
    sure = [float(sure_N[bins_N == one].mean()) for one in filled]
    right = [float(right_N[bins_N == one].mean()) for one in filled]
    some = [charts.Line("as measured", sure, right), charts.Line("as sure as right", [0.0, 1.0], [0.0, 1.0], dashed=True)]
    return Chart(
        charts.lines(some, x="probability of the predicted class", y="share that is right", unit=True),
        "Below the broken line it is surer than it should be.",
    )
