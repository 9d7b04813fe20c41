"""`tlray train`: a head on a table's vectors; a network's training is handed on to `tlray.training.network.train_network`."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tlray.config import TrainConfig
from tlray.errors import ConfigError
from tlray.lake.storage.uri import to_uri
from tlray.lake.table.lease import hold
from tlray.lake.table.table import Table
from tlray.machine import memory_budget_bytes
from tlray.models.encoder.memory import keep_freed_memory
from tlray.models.heads import Head
from tlray.progress import LINE_INTERVAL_SECONDS, say
from tlray.scoring import knn_accuracy, near_duplicate_groups
from tlray.training.examples.examples import Examples, Split, read_examples
from tlray.training.examples.losses import check_class_weights, row_weights
from tlray.training.examples.metrics import Evaluation, evaluate, wilson
from tlray.training.head_config import check_head
from tlray.training.heads.grid import best_of, solver_of, table_of, train_trials, trained_again, trials_of
from tlray.training.heads.table_vectors import LoadedVectors, TableRows, read_table
from tlray.training.heads.trials import Data, Fit, Schedule, Trial, scores_of, to_head
from tlray.training.model.loggers import Loggers
from tlray.training.model.model import RECIPE_NAME, ModelCard, now, package_versions, read_card, save_model
from tlray.training.model.plots import draw_confusion, draw_curves
from tlray.training.model.rerun import action_of, identity_of, result_of

MAX_COMPARED = 50_000
"""Rows that are compared with each other for near-duplicates: a minute on two cores at 1,280 floats, four of twice as many."""

MAX_PROBED = 20_000
"""Training rows of the nearest-neighbour probe."""

NEIGHBOURS = 20
CURVES = 12
"""Of the best heads; more than these in one picture show nothing."""


def train_head(config: TrainConfig) -> dict[str, Any]:
    """Train heads on a table's vectors and keep the best, or say that the model is there already."""
    began = time.monotonic()
    if config.table is None:
        raise ConfigError("table is missing: a head is trained on a table of embeddings; to train a network, give network too")
    check_head(config)
    check_class_weights(config)
    model_uri = to_uri(config.out)
    table = Table.open(to_uri(config.table), config.table_version)
    columns = _columns(table, config)
    identity = identity_of(table, config)
    action = action_of(model_uri, identity, table, config)
    if action == "unchanged":
        say(f"nothing to do: {model_uri} was trained with this config on version {table.version} of the table")
        return result_of(model_uri, read_card(model_uri), action, began)
    memory_bytes = config.memory_bytes or memory_budget_bytes()
    keep_freed_memory()  # many heads at once make many short-lived arrays of some megabytes
    rows = read_table(table, columns, memory_bytes)
    examples = read_examples(rows.uris, rows.labels, config, groups_N=_groups(rows, config))
    data_of = _data(rows, examples, config)
    trials_by = {name: trials_of(name, solver_of(data, config, memory_bytes), config) for name, data in data_of.items()}
    trials = [trial for some in trials_by.values() for trial in some]
    counts = dict(examples.counts) | {"failed": sum(part.rows for part in table.parts("failed"))}
    _say_plan(examples, trials, rows, counts)
    if config.dry_run:
        return _plan(model_uri, table, action, examples, trials, rows, counts)
    _ = [data.standard for data in data_of.values()]  # vectors that are not finite end it before anything is written
    with hold(model_uri, "train", wait=config.wait, seconds=config.lease_seconds) as lease:
        action = action_of(model_uri, identity, table, config)  # another run may have ended meanwhile
        if action == "unchanged":
            return result_of(model_uri, read_card(model_uri), action, began)
        fits = _fit(trials_by, data_of, table, config, memory_bytes)
        best = best_of(fits)
        data = data_of[best.trial.column]
        head = to_head(best, data, dropout=config.head.dropout)
        metrics = _evaluations(head, data, (Split.TRAIN, Split.VALIDATION, Split.TEST))
        if config.refit:
            head = to_head(trained_again(best, data, config, memory_bytes), data, dropout=config.head.dropout)
            metrics |= _evaluations(head, data, (Split.TEST,))
        training = {
            "strategy": "head",
            "identity": identity,
            "counts": counts,
            "heads": len(trials),
            "refit": config.refit,
            "grid": table_of(fits, data_of),
            "knn": _probe(data, config),
            "seconds": round(time.monotonic() - began, 3),
        }
        card = _card(head, best, data, table, config, training, metrics)
        files = {RECIPE_NAME: table.recipe_file.to_json()} | _pictures(fits, best, metrics, examples)
        lease.check()
        return result_of(model_uri, save_model(model_uri, card, head, files=files), action, began)


def _fit(
    trials_by: Mapping[str, list[Trial]], data_of: Mapping[str, Data], table: Table, config: TrainConfig, memory_bytes: int
) -> list[Fit]:
    """All trials of all columns."""
    parameters = {"table": table.uri, "table_version": table.version, "heads": sum(map(len, trials_by.values()))}
    with Loggers(config.loggers, folder=Path(config.logs), name=to_uri(config.out), parameters=parameters) as loggers:
        schedule, fits = Schedule(config.epochs, config.patience), list[Fit]()
        for name, some in trials_by.items():
            fits += train_trials(data_of[name], some, schedule, config, memory_bytes, _logging(name, loggers.log))
    return fits


def _card(
    head: Head,
    best: Fit,
    data: Data,
    table: Table,
    config: TrainConfig,
    training: dict[str, Any],
    metrics: dict[str, Evaluation],
) -> ModelCard:
    return ModelCard(
        created=now(),
        task=data.examples.task,
        classes=data.examples.classes,
        head=head.spec,
        recipe=table.recipe_file.recipe,
        recipe_id=table.recipe_file.recipe_id,
        tap=next(tap for tap, name in table.recipe_file.recipe.columns.items() if name == best.trial.column),
        table=table.uri,
        table_version=table.version,
        source=None,
        training=training,
        metrics=metrics,
        config=config.model_dump(mode="json"),
        versions=package_versions(),
    )


def _columns(table: Table, config: TrainConfig) -> tuple[str, ...]:
    """Embedding columns to train on."""
    if not table.columns:
        raise ConfigError(
            f"{table.uri} holds predictions without embeddings; expected a table that `tlray extract` made, or "
            "`tlray predict --embeddings`"
        )
    chosen = config.grid.columns or tuple(table.columns)
    odd = [name for name in chosen if name not in table.columns]
    if odd or len(set(chosen)) != len(chosen):
        raise ConfigError(f"{table.uri} has no columns {', '.join(odd)}; its embedding columns are {', '.join(table.columns)}")
    if len(chosen) > 1 and not config.grid.columns:
        raise ConfigError(
            f"{table.uri} has {len(chosen)} embedding columns: {', '.join(chosen)}; name one with --grid.columns, or several "
            "to find the best of them"
        )
    return chosen


def _groups(rows: TableRows, config: TrainConfig) -> np.ndarray | None:
    """Numbers of groups of near-duplicates, by the first column."""
    if config.split.group_duplicates is None:
        return None
    vectors = next(iter(rows.vectors.values()))
    if not isinstance(vectors, LoadedVectors) or len(rows.uris) > MAX_COMPARED:
        raise ConfigError(
            f"split.group_duplicates compares all pairs, and {len(rows.uris)} rows are too many (in memory, at most "
            f"{MAX_COMPARED}); find groups with `tlray duplicates --out`, join them to the labels file and "
            "name the column with split.group"
        )
    return near_duplicate_groups(vectors.features_ND, config.split.group_duplicates)


def _data(rows: TableRows, examples: Examples, config: TrainConfig) -> dict[str, Data]:
    train_rows = examples.positions(Split.TRAIN)
    weights = row_weights(examples.targets, train_rows, examples.task, len(examples.classes), config.class_weights)
    return {name: Data(vectors, examples, weights, len(rows.uris)) for name, vectors in rows.vectors.items()}


def _say_plan(examples: Examples, trials: list[Trial], rows: TableRows, counts: dict[str, int]) -> None:
    sizes = [len(examples.positions(split)) for split in Split]
    left_out = ", ".join(f"{count} {name}" for name, count in counts.items() if count and name not in ("images", "labelled"))
    where = "in memory" if all(vectors.in_memory for vectors in rows.vectors.values()) else "streamed from the table"
    say(
        f"{len(examples)} of {counts['images']} images, {len(examples.classes)} outputs; {sizes[0]} to train on, "
        f"{sizes[1]} to choose by, {sizes[2]} to test on" + (f"; left out: {left_out}" if left_out else "")
    )
    solvers = ", ".join(sorted({trial.solver for trial in trials}))
    say(f"{len(trials)} heads by {solvers}, vectors {where}")


def _plan(
    model_uri: str, table: Table, action: str, examples: Examples, trials: list[Trial], rows: TableRows, counts: dict[str, int]
) -> dict[str, Any]:
    return {
        "model": model_uri,
        "table": table.uri,
        "table_version": table.version,
        "dry_run": True,
        "action": action,
        "rows": {split.name.lower(): len(examples.positions(split)) for split in Split},
        "counts": counts,
        "outputs": len(examples.classes),
        "heads": len(trials),
        "solvers": sorted({trial.solver for trial in trials}),
        "in_memory": all(vectors.in_memory for vectors in rows.vectors.values()),
    }


def _logging(column: str, log: Callable[[int, dict[str, float]], None]) -> Callable[[int, dict[str, float]], None]:
    """Every epoch to the loggers, and a line of the log now and then."""
    last = time.monotonic()

    def note(epoch: int, metrics: dict[str, float]) -> None:
        nonlocal last
        log(epoch, {f"{column}/{name}": value for name, value in metrics.items()})
        if time.monotonic() - last >= LINE_INTERVAL_SECONDS:
            last = time.monotonic()
            say(f"epoch {epoch}: {metrics['heads']:.0f} heads, least validation loss {metrics['validation/loss']:.4f}")

    return note


def _evaluations(head: Head, data: Data, splits: tuple[Split, ...]) -> dict[str, Evaluation]:
    scores_NK, examples = scores_of(head, data), data.examples
    found = {}
    for split in splits:
        at = examples.positions(split)
        if len(at):
            found[split.name.lower()] = evaluate(scores_NK[at], examples.targets[at], examples.task, examples.classes)
    return found


def _probe(data: Data, config: TrainConfig) -> dict[str, Any] | None:
    """Accuracy of nearest neighbours among the training rows, which no head can fall much below; None where it is not cheap."""
    examples = data.examples
    train_rows = examples.positions(Split.TRAIN)
    asked = examples.positions(Split.TEST if config.split.test else Split.VALIDATION)
    few = max(len(train_rows), len(asked)) <= MAX_PROBED and len(train_rows) >= NEIGHBOURS and len(asked)
    if examples.task != "single" or not few or not isinstance(data.vectors, LoadedVectors):
        return None
    features_ND, targets = data.vectors.features_ND[examples.rows_N], examples.targets
    accuracy = knn_accuracy(features_ND[train_rows], targets[train_rows], features_ND[asked], targets[asked], k=NEIGHBOURS)
    estimate = wilson(round(accuracy * len(asked)), len(asked))
    return {"k": NEIGHBOURS, "rows": len(asked), "accuracy": estimate.model_dump()}


def _pictures(fits: list[Fit], best: Fit, metrics: dict[str, Evaluation], examples: Examples) -> dict[str, bytes]:
    pictures: dict[str, bytes | None] = {}
    if len(best.validation_losses) > 1:
        shown = sorted(fits, key=lambda fit: (fit is not best, fit.validation_loss))[:CURVES]
        named = {_name(fit.trial): fit.validation_losses for fit in shown if len(fit.validation_losses) > 1}
        pictures["curves.png"] = draw_curves(named, best=_name(best.trial))
    confusion = metrics.get("test", metrics["validation"]).confusion
    if confusion is not None:
        pictures["confusion.png"] = draw_confusion(confusion, examples.classes)
    return {name: data for name, data in pictures.items() if data is not None}


def _name(trial: Trial) -> str:
    rate = "" if trial.learning_rate is None else f", rate {trial.learning_rate:g}"
    return f"{trial.column}, decay {trial.weight_decay:g}{rate}"
