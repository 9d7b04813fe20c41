"""A command that is run again: what makes a model the same, what is done about one that is there, and what is said of it."""

import time
from typing import Any

from tlray.config import TrainConfig
from tlray.errors import ConfigError
from tlray.lake.storage.open import open_store
from tlray.lake.table.table import Table
from tlray.progress import say
from tlray.training.examples.labels import labels_uri
from tlray.training.model.model import ModelCard, check_same_recipe, model_exists, read_card

_NOT_IDENTITY = {"out", "rebuild", "wait", "lease_seconds", "dry_run", "memory_bytes", "loggers", "logs", "local"}
"""Keys that do not change what is trained."""

_LONG = {"per_class", "confusion"}
"""What the card alone has of an evaluation."""


def identity_of(table: Table, config: TrainConfig) -> dict[str, Any]:
    """What a model is made of; equal ones are the same model."""
    file = labels_uri(config)
    info = None if file is None else open_store(file).stat(file)
    settings = config.model_dump(mode="json", exclude=_NOT_IDENTITY)
    return {"config": settings | {"table": table.uri}, "table_version": table.version, "labels": info and info.etag}


def action_of(model_uri: str, identity: dict[str, Any], table: Table, config: TrainConfig) -> str:
    """`trained`, `retrained` or `unchanged`.

    Raises:
        ConfigError: there is a model of another config.
        RecipeMismatchError: there is one of another recipe.
    """
    if not model_exists(model_uri):
        return "trained"
    if config.rebuild:
        return "retrained"
    card = read_card(model_uri)
    check_same_recipe(card, table.recipe_file, model_uri, table.uri)
    there = card.training.get("identity") or {"config": {}}
    if there == identity:
        return "unchanged"
    ours, theirs = identity["config"], there["config"]
    differing = sorted(key for key in ours if ours[key] != theirs.get(key))
    if differing:
        raise ConfigError(
            f"{model_uri} holds a model of another config (it differs in {', '.join(differing)}); name another out, or replace "
            "it with --rebuild"
        )
    say(f"training anew: the table or the labels have changed since {model_uri} was trained")
    return "retrained"


def short_metrics(card: ModelCard) -> dict[str, dict[str, Any]]:
    """Of each split what fits on a line."""
    return {name: evaluation.model_dump(exclude_none=True, exclude=_LONG) for name, evaluation in card.metrics.items()}


def result_of(model_uri: str, card: ModelCard, action: str, began: float) -> dict[str, Any]:
    """The command's JSON object, out of the card alone."""
    return {
        "model": model_uri,
        "action": action,
        "table": card.table,
        "table_version": card.table_version,
        "recipe_id": card.recipe_id,
        "task": card.task,
        "outputs": len(card.classes),
        "counts": card.training["counts"],
        "heads": card.training["heads"],
        "best": card.training["grid"][0],
        "knn": card.training["knn"],
        "metrics": short_metrics(card),
        "seconds": round(time.monotonic() - began, 3),
    }
