"""The model folder: a head, perhaps a network, and the card that says what they are.

::

    model/
    ├── model.json             the card; written last: with it the model is complete
    ├── head.safetensors       the head's parameters and buffers
    ├── network.safetensors    of a fine-tuned network: its parameters and buffers, as `recipe.weights` takes them
    └── recipe.json, *.png     golden vectors of the recipe, pictures

The card holds the sha256 of every other file.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

import safetensors.torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from tlray.errors import AccessError, ModelCorruptError, ModelMissingError, ObjectNotFoundError, StoreUnfitError
from tlray.lake.place.occupant import occupant_of
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import join
from tlray.models.layers.heads import Head, HeadSpec
from tlray.recipe import AnyRecipe, RecipeFile
from tlray.training.examples.examples import Task
from tlray.training.examples.metrics import Evaluation
from tlray.version import __version__

CARD_NAME = "model.json"
HEAD_NAME = "head.safetensors"
NETWORK_NAME = "network.safetensors"
RECIPE_NAME = "recipe.json"

_MEND = "restore it, or run the `tlray train` command that made the model again: it trains anew what is damaged"


class ModelCard(BaseModel):
    """The document that says what a model is, stored as `model.json`.

    Attributes:
        format: version of this document.
        created: when, ISO 8601, UTC.
        task: what is predicted.
        classes: names of the outputs.
        head: the head's shape.
        recipe: how its vectors are made.
        recipe_id: of that recipe.
        tap: the layer of the recipe whose vectors the head takes.
        table: that it was trained on, or None.
        table_version: of that table.
        source: of the images that it was trained on, or None.
        training: how: strategy, counts of the splits, the grid, seeds, times.
        metrics: by split: `train`, `validation`, `test`.
        config: of the command.
        versions: of the packages.
        files: name to sha256.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    created: str
    task: Task
    classes: tuple[str, ...]
    head: HeadSpec
    recipe: AnyRecipe
    recipe_id: str
    tap: str
    table: str | None
    table_version: int | None
    source: str | None
    training: dict[str, Any]
    metrics: dict[str, Evaluation]
    config: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, str] = {}


@dataclass(frozen=True)
class Model:
    """A trained model in memory: its card and its head.

    Attributes:
        card: what it is.
        head: in evaluation mode, on the CPU.
        recipe_file: with the golden vectors of its recipe, where the folder has them.
    """

    card: ModelCard
    head: Head
    recipe_file: RecipeFile | None = None


def now() -> str:
    """The time of this moment as a card has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def package_versions() -> dict[str, str]:
    """Versions of what computes a model."""
    return {"tlray": __version__} | {name: version(name) for name in ("torch", "timm", "torchvision", "numpy", "pyarrow")}


def save_model(
    uri: str,
    card: ModelCard,
    head: Head,
    network_state: Mapping[str, Tensor] | None = None,
    *,
    files: Mapping[str, bytes] | None = None,
) -> ModelCard:
    """Write a model folder; what was there before is no model any more from the first write on.

    Args:
        uri: of the folder.
        card: its `files` are filled in here.
        head: on any device.
        network_state: state dict of a fine-tuned network.
        files: others by name: pictures, recipe.json.

    Returns:
        The card as it was written.
    """
    contents = {HEAD_NAME: _to_bytes(head.state_dict()), **(files or {})}
    if network_state is not None:
        contents[NETWORK_NAME] = _to_bytes(network_state)
    store = open_store(uri)
    store.delete([join(uri, CARD_NAME)])
    for name, data in contents.items():
        store.write(join(uri, name), data)
    card = card.model_copy(update={"files": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}})
    store.write(join(uri, CARD_NAME), card.model_dump_json(indent=1).encode())
    return card


def _to_bytes(state: Mapping[str, Tensor]) -> bytes:
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    data: bytes = safetensors.torch.save(tensors)
    return data


def model_exists(uri: str) -> bool:
    """Whether a complete model is there."""
    return open_store(uri).stat(join(uri, CARD_NAME)) is not None


def read_card(uri: str) -> ModelCard:
    """Read the card of a model.

    Raises:
        ModelMissingError: there is no complete model.
        ModelCorruptError: the card is not one of this version of tlray.
    """
    card_uri = join(uri, CARD_NAME)
    try:
        data = open_store(uri).read(card_uri).data
    except ObjectNotFoundError as error:
        there = ""
        with contextlib.suppress(AccessError, StoreUnfitError):  # a place that is only read cannot be looked into
            found = occupant_of(uri)
            there = f", which holds {found.said}" if found else ""
        raise ModelMissingError(
            f"no model at {uri}{there}; expected a folder that `tlray train` made: check the address"
        ) from error
    try:
        return ModelCard.model_validate_json(data)
    except ValidationError as error:
        raise ModelCorruptError(
            f"{card_uri} is not a model's card of this version of tlray: {_what(error)}; restore it, or replace the model with "
            "tlray train --rebuild"
        ) from error


def _what(error: ValidationError) -> str:
    """What of a card is wrong, and where."""
    first = error.errors()[0]
    return ": ".join([*(str(part) for part in first["loc"]), first["msg"]])


def load_model(uri: str) -> Model:
    """Read a model folder and check every byte that predictions depend on.

    Raises:
        ModelMissingError: there is no complete model.
        ModelCorruptError: a file is gone, or is not what the card says.
    """
    card = read_card(uri)
    contents = {name: data for name, data in _checked_files(uri, card) if name != NETWORK_NAME}  # that is read once more, later
    head = Head.to_be_filled(card.head)
    try:
        head.load_state_dict(safetensors.torch.load(contents[HEAD_NAME]))
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise ModelCorruptError(f"{join(uri, HEAD_NAME)} does not fit its card: {error}; {_MEND}") from error
    head.eval()
    recipe_data = contents.get(RECIPE_NAME)
    recipe_file = None if recipe_data is None else RecipeFile.from_json(recipe_data, join(uri, RECIPE_NAME))
    return Model(card, head, recipe_file)


def check_files(uri: str, card: ModelCard) -> None:
    """Read the files of a model that predictions depend on, and hold each against the card.

    Raises:
        ModelCorruptError: one is gone, or is not what the card says.
    """
    for _ in _checked_files(uri, card):
        pass


def _checked_files(uri: str, card: ModelCard) -> Iterator[tuple[str, bytes]]:
    for name in (HEAD_NAME, NETWORK_NAME, RECIPE_NAME):
        if name in card.files:
            yield name, _checked(uri, name, card.files[name])


def _checked(uri: str, name: str, digest: str) -> bytes:
    file_uri = join(uri, name)
    try:
        data = open_store(uri).read(file_uri).data
    except ObjectNotFoundError as error:
        raise ModelCorruptError(f"{file_uri} is gone; {_MEND}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise ModelCorruptError(f"{file_uri} has the sha256 {found[:12]}, the card says {digest[:12]}; {_MEND}")
    return data
