"""Heads trained on a table's vectors: a grid of them in one pass, of which the best is kept."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tlray.config import ExamplesConfig, FitConfig, TrainConfig
from tlray.errors import ConfigError
from tlray.lake.place.lease import Lease
from tlray.lake.table.table import Table
from tlray.machine.capacity import memory_budget_bytes
from tlray.models.layers.heads import Head
from tlray.progress import LINE_INTERVAL_SECONDS, say
from tlray.scoring import knn_accuracy, near_duplicate_groups
from tlray.training.examples.examples import Examples, Split, read_examples
from tlray.training.examples.labels import columns_asked
from tlray.training.examples.losses import row_weights
from tlray.training.examples.metrics import Evaluation, evaluate, wilson
from tlray.training.examples.table_vectors import LoadedVectors, TableRows, fits, load_vectors, read_rows, vectors_by_column
from tlray.training.heads.grid import best_of, solver_of, table_of, train_trials, trained_again, trials_of
from tlray.training.heads.trials import Data, Fit, Schedule, Trial, scores_of, to_head
from tlray.training.model.loggers import Loggers
from tlray.training.model.model import ModelCard
from tlray.training.model.publish import Trained, publish
from tlray.training.model.rerun import Identity, config_identity, version_of_labels

MAX_COMPARED = 50_000
"""Rows that are compared with each other for near-duplicates; the time grows with the square of their number."""

MAX_PROBED = 20_000
"""Training rows of the nearest-neighbour probe."""

NEIGHBOURS = 20
CURVES = 12
"""How many curves of the best heads are drawn; more than these in one picture show nothing."""


class HeadTraining:
    """The training of heads on a table's vectors; see `tlray.training.train.Training`.

    Args:
        config: of the command, with whole URIs.

    Raises:
        ConfigError: there is no table, or it has no such columns.
    """

    has_leftovers = False
    examples: Examples

    def __init__(self, config: TrainConfig) -> None:
        if config.table is None:
            raise ConfigError(
                "table is missing: a head is trained on a table of embeddings; to train a network, give network too"
            )
        self._table = Table.open(config.table, config.table_version)
        self._columns = _columns(self._table, config)
        self.config = config.model_copy(update={"table": self._table.uri})  # of the table itself, where an alias was given
        self.recipe = self._table.recipe_file.recipe
        self.identity = Identity(
            config=config_identity(config, self._table.uri),
            recipe_id=self.recipe.recipe_id,
            table_version=self._table.version,
            labels=version_of_labels(config.labels),
        )
        self._memory_bytes = config.memory_bytes or memory_budget_bytes()
        self._schedule = Schedule.of(config.part(FitConfig))

    def prepare(self) -> dict[str, Any]:
        """Read the vectors of the examples, and choose the heads that are trained."""
        self._began = time.monotonic()
        config = self.config
        rows, examples = examples_of_table(self._table, config.part(ExamplesConfig), config.where, self._near_duplicates)
        failed = sum(part.rows for part in self._table.parts("failed"))
        self.examples = replace(examples, counts={**examples.counts, "failed": failed})
        vectors = vectors_by_column(rows, self._columns, examples.rows_N, self._memory_bytes)
        train_rows = examples.positions(Split.TRAIN)
        weights = row_weights(examples.targets, train_rows, examples.task, len(examples.classes), config.class_weights)
        self._data = {column: Data(some, self.examples, weights) for column, some in vectors.items()}
        _ = [data.standard for data in self._data.values()]  # vectors that are not finite end it before anything is written
        self._trials = {
            column: trials_of(column, solver_of(data, config.head, config.grid, self._memory_bytes), config.grid)
            for column, data in self._data.items()
        }
        trials = [trial for some in self._trials.values() for trial in some]
        solvers, in_memory = sorted({trial.solver for trial in trials}), all(one.in_memory for one in vectors.values())
        say(f"{len(trials)} heads by {', '.join(solvers)}, vectors {'in memory' if in_memory else 'streamed from the table'}")
        return {
            "table_version": self._table.version,
            "heads": len(trials),
            "solvers": solvers,
            "in_memory": in_memory,
        }

    def run(self, lease: Lease) -> ModelCard:
        """Train all heads, and write the best one."""
        config = self.config
        fits = self._fit()
        best = best_of(fits)
        data = self._data[best.trial.column]
        head = to_head(best, data, dropout=config.head.dropout)
        metrics = _evaluations(head, data, (Split.TRAIN, Split.VALIDATION, Split.TEST))
        if config.refit:
            again = trained_again(best, data, self._schedule, config.head, self._memory_bytes)
            head = to_head(again, data, dropout=config.head.dropout)
            metrics |= _evaluations(head, data, (Split.TEST,))
        facts = {
            "heads": len(fits),
            "refit": config.refit,
            "grid": table_of(fits, self._data),
            "knn": _probe(data),
            "seconds": round(time.monotonic() - self._began, 3),
        }
        columns = self.recipe.columns
        trained = Trained(
            strategy="head",
            examples=self.examples,
            head=head,
            recipe_file=self._table.recipe_file,
            tap=next(tap for tap, name in columns.items() if name == best.trial.column),
            metrics=metrics,
            curves=_curves(fits, best),
            best_curve=_name(best.trial),
            facts=facts,
            table_version=self._table.version,
        )
        lease.check()
        return publish(trained, config, self.identity)

    def clear(self) -> None:
        """Do nothing: heads leave nothing behind."""

    def _fit(self) -> list[Fit]:
        """Train the heads of all columns."""
        config = self.config
        heads = sum(map(len, self._trials.values()))
        parameters = {"table": self._table.uri, "table_version": self._table.version, "heads": heads}
        with Loggers(config.loggers, folder=Path(config.logs), name=config.out, parameters=parameters) as loggers:
            fits = list[Fit]()
            for column, trials in self._trials.items():
                log = _logging(column, loggers.log)
                fits += train_trials(self._data[column], trials, self._schedule, config.head, self._memory_bytes, log)
        return fits

    def _near_duplicates(self, rows: TableRows) -> np.ndarray | None:
        """Number the groups of rows that are nearly the same, by the first column; int64, one for each row of the table."""
        cosine = self.config.split.group_duplicates
        if cosine is None:
            return None
        count, column = len(rows.items), self._columns[0]
        if not fits(rows, [column], self._memory_bytes) or count > MAX_COMPARED:
            raise ConfigError(
                f"split.group_duplicates compares all pairs, and {count} rows are too many (in memory, at most "
                f"{MAX_COMPARED}); find groups with `tlray duplicates --out`, join them to the labels file and "
                "name the column with split.group"
            )
        return near_duplicate_groups(load_vectors(rows, column, np.arange(count)), cosine)


def examples_of_table(
    table: Table, config: ExamplesConfig, where: str | None, near_duplicates: Callable[[TableRows], np.ndarray | None]
) -> tuple[TableRows, Examples]:
    """Read which rows of a table are trained on, chosen by and tested on, with their labels; no vectors yet.

    Args:
        table: at the version that is trained on.
        config: what examples are chosen by.
        where: the condition that rows have to fulfil.
        near_duplicates: gives the group of each row, int64; None where rows stand alone.

    Raises:
        ExamplesError: rows and labels do not fit together.
        WhereError: the condition cannot be read.
        TableError: a part is gone: the table moved on and was vacuumed.
    """
    asked = columns_asked(config)
    rows = read_rows(table, asked, where)
    columns = {name: rows.items[name].combine_chunks() for name in asked}
    return rows, read_examples(rows.uris, rows.labels, config, groups_N=near_duplicates(rows), columns=columns)


def _columns(table: Table, config: TrainConfig) -> tuple[str, ...]:
    """Find the embedding columns to train on."""
    if not table.columns:
        raise ConfigError(
            f"{table.uri} holds predictions without embeddings; expected a table that `tlray extract` made, or "
            "`tlray predict --embeddings`"
        )
    chosen = config.grid.columns or tuple(table.columns)
    odd = [name for name in chosen if name not in table.columns]
    if odd:
        raise ConfigError(f"{table.uri} has no columns {', '.join(odd)}; its embedding columns are {', '.join(table.columns)}")
    if len(set(chosen)) != len(chosen):
        raise ConfigError(f"grid.columns names a column twice: {', '.join(chosen)}; name each once")
    if len(chosen) > 1 and not config.grid.columns:
        raise ConfigError(
            f"{table.uri} has {len(chosen)} embedding columns: {', '.join(chosen)}; name one with --grid.columns, or several "
            "to find the best of them"
        )
    return chosen


def _logging(column: str, log: Callable[[int, Mapping[str, float]], None]) -> Callable[[int, dict[str, float]], None]:
    """Tell the loggers of every epoch, and a person now and then."""
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


def _probe(data: Data) -> dict[str, Any] | None:
    """Measure nearest neighbours among the training rows, which no head can fall much below; None where that is not cheap."""
    examples = data.examples
    train_rows = examples.positions(Split.TRAIN)
    test_rows = examples.positions(Split.TEST)
    asked = test_rows if len(test_rows) else examples.positions(Split.VALIDATION)
    few = max(len(train_rows), len(asked)) <= MAX_PROBED and len(train_rows) >= NEIGHBOURS and len(asked)
    if examples.task != "single" or not few or not isinstance(data.vectors, LoadedVectors):
        return None
    features_ND, targets = data.vectors.features_ND, examples.targets
    accuracy = knn_accuracy(features_ND[train_rows], targets[train_rows], features_ND[asked], targets[asked], k=NEIGHBOURS)
    estimate = wilson(round(accuracy * len(asked)), len(asked))
    return {"k": NEIGHBOURS, "rows": len(asked), "accuracy": estimate.model_dump()}


def _curves(fits: list[Fit], best: Fit) -> dict[str, tuple[float, ...]]:
    """The validation losses of the best heads, where there is more than one epoch to draw."""
    if len(best.validation_losses) < 2:
        return {}
    shown = sorted(fits, key=lambda fit: (fit is not best, fit.validation_loss))[:CURVES]
    return {_name(fit.trial): fit.validation_losses for fit in shown if len(fit.validation_losses) > 1}


def _name(trial: Trial) -> str:
    rate = "" if trial.learning_rate is None else f", rate {trial.learning_rate:g}"
    return f"{trial.column}, decay {trial.weight_decay:g}{rate}"
