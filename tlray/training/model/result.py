"""What `tlray train` says at its end, and before it where it is only asked: one JSON object for heads and networks."""

from collections.abc import Mapping
from typing import Any

from tlray.config import TrainConfig
from tlray.training.examples.examples import Examples, Split
from tlray.training.model.model import ModelCard
from tlray.training.model.rerun import Action

_LONG = {"per_class", "confusion"}
"""What the card alone has of an evaluation."""

_TOLD = ("knn", "frozen_up_to", "epochs", "best_epoch", "unreadable_images")
"""What a result tells of how the model was trained, where its card has it."""


def result_of(out: str, card: ModelCard, action: Action, seconds: float) -> dict[str, Any]:
    """The command's JSON object, out of the card alone.

    Args:
        out: URI of the model's folder.
        card: of the model.
        action: what was done.
        seconds: that the command took.
    """
    training = card.training
    told = {key: training[key] for key in _TOLD if key in training}
    if "grid" in training:
        told = {"heads": training["heads"], "best": training["grid"][0]} | told
    return {
        "model": out,
        "action": action,
        "table": card.table,
        "table_version": card.table_version,
        "source": card.source,
        "recipe_id": card.recipe_id,
        "task": card.task,
        "outputs": len(card.classes),
        "counts": training["counts"],
        **told,
        "metrics": {name: one.model_dump(exclude_none=True, exclude=_LONG) for name, one in card.metrics.items()},
        "seconds": round(seconds, 3),
    }


def plan_of(config: TrainConfig, examples: Examples, action: Action, details: Mapping[str, Any]) -> dict[str, Any]:
    """The command's JSON object where it is only asked what it would do.

    Args:
        config: of the command, with whole URIs.
        examples: that would be trained on.
        action: that would be taken.
        details: of heads or of a network.
    """
    return {
        "model": config.out,
        "table": config.table,
        "source": None if config.source is None else config.source.uri,
        "dry_run": True,
        "action": action,
        "rows": {split.name.lower(): len(examples.positions(split)) for split in Split},
        "counts": dict(examples.counts),
        "outputs": len(examples.classes),
        **details,
    }


def headline(examples: Examples) -> str:
    """A line for people: how many examples there are, for what, and what was left out."""
    sizes = [len(examples.positions(split)) for split in Split]
    left_out = [f"{count} {name}" for name, count in examples.left_out.items()]
    return (
        f"{len(examples)} of {examples.counts['images']} images, {len(examples.classes)} outputs; {sizes[0]} to train on, "
        f"{sizes[1]} to choose by, {sizes[2]} to test on" + (f"; left out: {', '.join(left_out)}" if left_out else "")
    )
