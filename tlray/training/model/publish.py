"""What a training made, of heads or of a network: its model folder, and what `tlray train` says of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from tlray.config import TrainConfig
from tlray.models.layers.heads import Head
from tlray.recipe import RecipeFile
from tlray.training.examples.examples import Examples, Split
from tlray.training.examples.metrics import Evaluation
from tlray.training.model.model import RECIPE_NAME, ModelCard, now, package_versions, save_model
from tlray.training.model.plots import draw_confusion, draw_curves
from tlray.training.model.rerun import Action, Identity

_LONG = {"per_class", "confusion"}
"""What the card alone has of an evaluation."""

_TOLD = ("knn", "frozen_up_to", "epochs", "best_epoch", "unreadable_images")
"""What a result tells of how the model was trained, where its card has it."""


@dataclass(frozen=True)
class Trained:
    """A model as it comes from its training.

    Attributes:
        strategy: what was trained.
        examples: that it was trained on.
        head: on any device.
        recipe_file: of the vectors that the head takes, with golden ones.
        tap: the layer of the recipe that gives them.
        metrics: by split.
        curves: losses by epoch, by name; those of several heads or of one network.
        best_curve: name of the one that was kept, where one was chosen.
        facts: what else the card says of the training.
        network_state: state dict of a network that was trained too.
        network_files: small files that it is loaded with, by name.
        table_version: of the table that it was trained on.
    """

    strategy: Literal["head", "network"]
    examples: Examples
    head: Head
    recipe_file: RecipeFile
    tap: str
    metrics: Mapping[str, Evaluation]
    curves: Mapping[str, Sequence[float]]
    best_curve: str | None
    facts: Mapping[str, Any]
    network_state: Mapping[str, Tensor] | None = None
    network_files: Mapping[str, bytes] = field(default_factory=dict)
    table_version: int | None = None


def publish(trained: Trained, config: TrainConfig, identity: Identity) -> ModelCard:
    """Write the folder of a model that was trained.

    Args:
        trained: the model.
        config: of the command, with whole URIs.
        identity: of the model.

    Returns:
        The card as it was written.
    """
    card = ModelCard(
        created=now(),
        task=trained.examples.task,
        classes=trained.examples.classes,
        head=trained.head.spec,
        recipe=trained.recipe_file.recipe,
        recipe_id=trained.recipe_file.recipe_id,
        tap=trained.tap,
        table=config.table,
        table_version=trained.table_version,
        source=None if config.source is None else config.source.uri,
        training={
            "strategy": trained.strategy,
            "identity": identity.model_dump(mode="json", exclude={"fingerprint"}),
            "fingerprint": identity.fingerprint,
            "counts": dict(trained.examples.counts),
            **trained.facts,
        },
        metrics=dict(trained.metrics),
        config=config.model_dump(mode="json"),
        versions=package_versions(),
    )
    files = dict(trained.network_files) | {RECIPE_NAME: trained.recipe_file.to_json()} | _pictures(trained)
    return save_model(config.out, card, trained.head, trained.network_state, files=files)


def _pictures(trained: Trained) -> dict[str, bytes]:
    """The curves where there are any, and the confusion of classes on the test rows or, without these, on the validation's."""
    pictures: dict[str, bytes | None] = {}
    if trained.curves:
        pictures["curves.png"] = draw_curves(trained.curves, best=trained.best_curve)
    measured = trained.metrics.get("test") or trained.metrics.get("validation")
    if measured is not None and measured.confusion is not None:
        pictures["confusion.png"] = draw_confusion(measured.confusion, trained.examples.classes)
    return {name: data for name, data in pictures.items() if data is not None}


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
