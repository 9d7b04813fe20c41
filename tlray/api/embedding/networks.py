"""Networks ready to run over images, made from a recipe that is asked for or from one that a table was made by.

Shape legend: B images, H height, W width, C channels, D length of a vector.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tlray.api.embedding.images import ImageInputs
from tlray.api.embedding.running import Runner
from tlray.api.embedding.texts import TextInputs
from tlray.config import RecipeConfig
from tlray.config.commands.extraction import Engine
from tlray.errors import ConfigError
from tlray.lake.image.resize import check_preprocessing
from tlray.lake.storage.local_copy import local_copy
from tlray.machine.capacity import usable_cores
from tlray.recipe import Recipe, RecipeFile

if TYPE_CHECKING:
    from tlray.models.backbones.any_backbone import AnyBackbone
    from tlray.models.encoder.golden import AnyEncoder as Network
    from tlray.models.encoder.text import TextEncoder

CHUNK_IMAGES = 64
"""At least so many are decoded ahead: enough for every core, and 10 MB of pixels at 224 x 224."""


@dataclass(frozen=True)
class Placement:
    """Where and in what batches a network runs.

    Attributes:
        device: `auto` or a name that torch knows.
        batch_size: of one forward pass; None chooses by the device.
        engine: what computes on a CPU, as the key of `tlray extract`.
    """

    device: str = "auto"
    batch_size: int | None = None
    engine: Engine = "auto"

    def network(self, backbone: "AnyBackbone", file: RecipeFile | None = None) -> "Network":
        """The network of a backbone, with a lane for each core where it runs on the CPU.

        Args:
            backbone: of images or of texts.
            file: of a table, whose numbers the network has to show that it computes; None where there is none.

        Raises:
            GoldenMismatchError: it computes others.
        """
        from tlray.models.encoder.golden import make_encoder, open_encoder  # imports torch
        from tlray.models.encoder.int8.encoder import check_place

        check_place(backbone.recipe, engine=self.engine, device=self.device)
        where: dict[str, Any] = {
            "device": self.device,
            "batch_size": self.batch_size,
            "lanes": usable_cores(),
            "engine": self.engine,
        }
        if file is None:
            return open_encoder(backbone, **where)
        return make_encoder(file, local_copy, where="this machine", backbone=backbone, **where)


def of_recipe(config: RecipeConfig, placement: Placement) -> Runner:
    """All taps of a recipe, their vectors one after the other.

    Raises:
        BackboneError, WeightsError, ConfigError: there is no such network.
    """
    from tlray.models.backbones.any_backbone import resolve_any_backbone  # imports torch

    backbone = resolve_any_backbone(config, local_copy)
    return _runner(backbone, placement.network(backbone), list(backbone.recipe.columns.values()))


def of_table(file: RecipeFile, column: str, placement: Placement) -> Runner:
    """One embedding column of a table, by a network that has shown that it computes the table's numbers.

    Args:
        file: the table's, or the copy of it that an index or a model keeps.
        column: to compute.
        placement: where.

    Raises:
        GoldenMismatchError: it computes others.
        WeightsError: the weights changed or are gone.
    """
    from tlray.models.backbones.any_backbone import load_any_backbone  # imports torch

    backbone = load_any_backbone(file.recipe, local_copy)
    return _runner(backbone, placement.network(backbone, file), [column])


def texts_of_recipe(config: RecipeConfig) -> "TextEncoder":
    """The text tower of a recipe's network, whose vectors can be compared with those of the recipe's only tap.

    Raises:
        BackboneError, WeightsError: there is no such network.
        RecipeMismatchError: it embeds texts alone, so that the encoder itself takes them.
        ConfigError: it has no text tower, or other layers are asked for than the one that texts are compared with.
    """
    from tlray.models.backbones.any_backbone import image_backbone, resolve_any_backbone  # imports torch
    from tlray.models.encoder.text import text_encoder_of

    backbone = image_backbone(resolve_any_backbone(config, local_copy))
    column, *others = backbone.shapes
    if others:
        raise ConfigError(f"taps names {len(others) + 1} layers; texts are compared with the vectors of one: give that alone")
    return text_encoder_of(backbone, column)


def texts_of_table(file: RecipeFile, column: str) -> "TextEncoder":
    """The text tower of a table's network, which has shown that it embeds the golden texts as when the table was made.

    Args:
        file: the table's.
        column: with whose vectors texts are to be compared.

    Raises:
        ConfigError: the network has no text tower, or the column is of another layer.
        GoldenMismatchError: it embeds texts otherwise.
    """
    from tlray.models.encoder.text import open_text_encoder  # imports torch

    return open_text_encoder(file, column, local_copy)


def inputs_of(backbone: "AnyBackbone") -> ImageInputs | TextInputs:
    """What the network of a backbone takes.

    Raises:
        ConfigError: images are to be prepared in a way that cannot be.
    """
    if not isinstance(backbone.recipe, Recipe):
        return TextInputs()
    check_preprocessing(backbone.recipe.preprocessing)
    return ImageInputs(backbone.recipe)


def _runner(backbone: "AnyBackbone", network: "Network", columns: Sequence[str]) -> Runner:
    inputs = inputs_of(backbone)

    def vectors_of(prepared: np.ndarray) -> np.ndarray:
        found = network.encode(prepared)
        return np.concatenate([found[column] for column in columns], axis=1)

    length = sum(math.prod(backbone.shapes[column]) for column in columns)
    return Runner(backbone.recipe, inputs, vectors_of, length, max(CHUNK_IMAGES, 2 * network.batch_size))
