"""A command that is run again: what makes two models the same, and what is done about one that is there."""

from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tlray.config import TrainConfig
from tlray.config.identity import completed, differences, identity_of
from tlray.errors import ConfigError, ModelCorruptError, RecipeMismatchError
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import to_uri
from tlray.models.weights.spec import WeightsSpec
from tlray.progress import say
from tlray.recipe import AnyRecipe
from tlray.training.examples.labels import labels_uri
from tlray.training.model.model import ModelCard, check_files, model_exists, read_card

Action = Literal["trained", "retrained", "unchanged"]


class Identity(BaseModel):
    """What a model is made of; equal ones are the same model.

    Cards of older versions lack some of it: a key of the config that came later takes its default, and of networks there is
    the fingerprint alone.

    Attributes:
        config: the keys that matter, places as whole URIs.
        recipe_id: of the network, or of the table's vectors, that the training begins with.
        table_version: of the table; None where `examples` says it.
        labels: version of the labels file; likewise.
        examples: sha256 of the examples that a network is trained on.
        fingerprint: of a network's training, as version 0.1 computes it; names the folder of its checkpoints.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    config: dict[str, Any]
    recipe_id: str | None = None
    table_version: int | None = None
    labels: str | None = None
    examples: str | None = None
    fingerprint: str | None = None


def with_whole_uris(config: TrainConfig) -> TrainConfig:
    """The config with whole URIs for the places that it names.

    Other processes work in other folders, and a relative path means another place in each.
    """
    update: dict[str, Any] = {"out": to_uri(config.out), "labels": labels_uri(config.labels) or config.labels}
    if config.table is not None:
        update["table"] = to_uri(config.table)
    if config.source is not None:
        listing = config.source.listing and to_uri(config.source.listing)
        update["source"] = config.source.model_copy(update={"uri": to_uri(config.source.uri), "listing": listing})
    if config.recipe is not None:
        update["recipe"] = config.recipe.model_copy(update={"weights": whole_weights(config.recipe.weights)})
    return config.model_copy(update=update)


def whole_weights(weights: str) -> str:
    """A recipe's weights with the whole URI where they are a file."""
    spec = WeightsSpec.parse(weights)
    return replace(spec, location=to_uri(spec.location)).text if spec.kind == "file" else weights


def config_identity(config: TrainConfig, table_uri: str | None) -> dict[str, Any]:
    """The part of an identity that the config says.

    Args:
        config: with whole URIs.
        table_uri: of the table itself, where the config names an alias of it.
    """
    return identity_of(config) | {"table": table_uri}


def version_of_labels(labels: str) -> str | None:
    """The etag of the labels file, or None where the labels are the images' own."""
    uri = labels_uri(labels)
    info = None if uri is None else open_store(uri).stat(uri)
    return None if info is None else info.etag


def action_of(out: str, identity: Identity, recipe: AnyRecipe, *, rebuild: bool) -> Action:
    """What a training has to do about the model that may be there.

    Args:
        out: URI of the model's folder.
        identity: of the model that is asked for.
        recipe: that its training begins with.
        rebuild: replace whatever is there.

    Raises:
        ConfigError: there is a model of another config.
        RecipeMismatchError: there is one of another recipe.
        ModelCorruptError: the card of the model cannot be read.
    """
    if not model_exists(out):
        return "trained"
    if rebuild:
        return "retrained"
    card = read_card(out)
    there = _identity_in(card)
    if _is_same(there, identity):
        return _if_whole(out, card)
    _check_recipe(out, card, there, recipe)
    differing = differences(identity.config, there.config)
    if differing:
        raise ConfigError(
            f"{out} holds a model of another config (it differs in {', '.join(sorted(differing))}); name another out, or "
            "replace it with --rebuild"
        )
    say(f"training anew: the images, their vectors or their labels have changed since {out} was trained")
    return "retrained"


def _identity_in(card: ModelCard) -> Identity:
    """What a card says of what the model is made of, in the terms of this version."""
    written = card.training.get("identity") or {"config": card.config}
    config = completed(written["config"], TrainConfig)
    config["labels"] = labels_uri(config["labels"]) or config["labels"]  # version 0.1 kept heads' as they were typed
    about = {"recipe_id": None if card.training.get("strategy") == "network" else card.recipe_id, **written, "config": config}
    return Identity.model_validate(about | {"fingerprint": card.training.get("fingerprint")})


def _is_same(there: Identity, ours: Identity) -> bool:
    if ours.fingerprint is not None and ours.fingerprint == there.fingerprint:
        return True
    alike = {"fingerprint"}
    return there.model_dump(exclude=alike) == ours.model_dump(exclude=alike)


def _if_whole(out: str, card: ModelCard) -> Action:
    """Nothing is to be done, unless a file of the model is damaged or lost."""
    try:
        check_files(out, card)
    except ModelCorruptError as error:
        say(f"training anew: {error}")
        return "retrained"
    return "unchanged"


def _check_recipe(out: str, card: ModelCard, there: Identity, recipe: AnyRecipe) -> None:
    """Refuse to replace a model that began with another recipe.

    Raises:
        RecipeMismatchError: names the fields that differ.
    """
    under_its_rule = recipe.under_rule_of(card.recipe)  # another version of it is another version of the data
    if there.recipe_id in (None, recipe.recipe_id, under_its_rule.recipe_id):
        return
    was_trained = card.recipe_id != there.recipe_id  # then its weights are no longer those that it began with
    left_out = ("weights:", "weights_sha256:") if was_trained else ("weights:",)
    fields = [line for line in card.recipe.differences(recipe) if not line.startswith(left_out)]
    raise RecipeMismatchError(
        f"{out} began with recipe {str(there.recipe_id)[:12]}, but this command's is {recipe.recipe_id[:12]} "
        f"(field: the model's, this command's; {'; '.join(fields) or 'other weights'}); give that recipe or a table of it, "
        "name another out, or replace the model with --rebuild"
    )
