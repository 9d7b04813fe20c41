"""Networks ready to run over images, made from a recipe that is asked for or from one that a table was made by.

Shape legend: B images, H height, W width, C channels, D length of a vector.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tlray.api.images import ImageInputs
from tlray.api.running import Runner
from tlray.api.texts import TextInputs
from tlray.config import RecipeConfig
from tlray.lake.image.resize import check_preprocessing
from tlray.lake.storage.local_copy import local_copy
from tlray.recipe import Recipe, RecipeFile

if TYPE_CHECKING:
    from tlray.models.any_backbone import AnyBackbone
    from tlray.models.encoder.golden import AnyEncoder as Network

CHUNK_IMAGES = 64
"""At least so many are decoded ahead: enough for every core, and 10 MB of pixels at 224 x 224."""


@dataclass(frozen=True)
class Placement:
    """Where and in what batches a network runs.

    Attributes:
        device: `auto` or a name that torch knows.
        batch_size: of one forward pass; None chooses by the device.
    """

    device: str = "auto"
    batch_size: int | None = None

    def network(self, backbone: "AnyBackbone", exact_below: int | None) -> "Network":
        """The network of a backbone, with a lane for each core where it runs on the CPU."""
        from tlray.models.encoder.golden import open_encoder  # imports torch

        return open_encoder(
            backbone, device=self.device, batch_size=self.batch_size, exact_below=exact_below, lanes=os.cpu_count() or 1
        )


def of_recipe(config: RecipeConfig, placement: Placement) -> Runner:
    """All taps of a recipe, their vectors one after the other.

    Raises:
        BackboneError, WeightsError, ConfigError: there is no such network.
    """
    from tlray.models.any_backbone import resolve_any_backbone  # imports torch

    backbone = resolve_any_backbone(config, local_copy)
    network = placement.network(backbone, exact_below=None)
    return _runner(backbone, network, list(backbone.recipe.columns.values()))


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
    from tlray.models.any_backbone import load_any_backbone  # imports torch
    from tlray.models.encoder.golden import check_encoder

    backbone = load_any_backbone(file.recipe, local_copy)
    network = placement.network(backbone, file.exact_below)
    check_encoder(network, file, where="this machine")
    return _runner(backbone, network, [column])


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
