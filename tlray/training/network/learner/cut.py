"""Where a network is cut: up to there it stays as it is, and what it computes up to there may come from a table.

Shape legend: B images, H height, W width, C channels, D floats of one activation.
"""

from dataclasses import replace

import torch
from torch import Tensor

from tlray.errors import ConfigError, RecipeMismatchError
from tlray.lake.table.table import Table
from tlray.models.backbones.images import Backbone
from tlray.models.backbones.network_input import to_network_input
from tlray.models.layers.freezing import Anatomy, examine
from tlray.models.layers.suffix import Suffix, split_suffix
from tlray.models.layers.taps import TapRunner
from tlray.recipe import GOLDEN_IMAGE_COUNT, Recipe, RecipeFile, check_golden, golden_images, of_images


def choose_cut(freeze: str | None, backbone: Backbone, table: Table | None) -> str | None:
    """Find the cut that is meant, and check it: the network has it, and the table has its activations.

    Args:
        freeze: as `network.freeze`.
        backbone: that is trained.
        table: of activations, where they are trained on.

    Returns:
        The layer up to which the network stays as it is; None where all of it is trained.

    Raises:
        BackboneError: it has no such cut.
        RecipeMismatchError: the table has not its activations, or those of another network.
        GoldenMismatchError: the table was made by something that computes other numbers.
    """
    anatomy = anatomy_of(backbone)
    if table is None:
        return anatomy.choose_cut(freeze or "none")
    recipe = of_images(table.recipe_file.recipe)
    _check_recipes(table.uri, recipe, backbone.recipe)
    if freeze is None and len(recipe.taps) > 1:
        raise ConfigError(f"{table.uri} has the layers {', '.join(recipe.taps)}; name one of them as network.freeze")
    cut = recipe.taps[0] if freeze is None else anatomy.choose_cut(freeze)
    if cut not in recipe.taps:
        raise RecipeMismatchError(
            f"{table.uri} has the activations of {', '.join(recipe.taps)}, but network.freeze {freeze} means {cut}; "
            "extract a table with that layer in recipe.taps"
        )
    suffix_of(backbone, cut)
    check_activations(backbone, table.recipe_file, cut)
    return cut


def _check_recipes(uri: str, theirs: Recipe, ours: Recipe) -> None:
    """Refuse a table that does not hold what this network computes up to a cut."""
    both = {"backbone", "weights_sha256", "preprocessing", "image_rule"}
    differences = [line for line in ours.differences(theirs) if line.partition(":")[0].partition(".")[0] in both]
    if theirs.pool != "none":
        differences.append(f"pool: 'none', {theirs.pool!r}")
    if theirs.normalize:
        differences.append("normalize: False, True")
    if differences:
        raise RecipeMismatchError(
            f"{uri} does not hold this network's activations (field: needed, the table's; {'; '.join(differences)}); "
            "extract one with --recipe.pool none and the same backbone, weights and preprocessing"
        )


def probe_of(recipe: Recipe, images: int) -> Tensor:
    """The first golden images as the network takes them, images_BCHW."""
    return to_network_input(torch.from_numpy(golden_images(*recipe.preprocessing.crop)[:images]), recipe.preprocessing)


def anatomy_of(backbone: Backbone) -> Anatomy:
    """Examine a backbone that has a single tap.

    Raises:
        ConfigError: it has several.
    """
    if len(backbone.recipe.taps) != 1:
        raise ConfigError(f"recipe.taps has {len(backbone.recipe.taps)} layers; a network is trained on one")
    return examine(backbone.module, backbone.recipe.taps[0], probe_of(backbone.recipe, 1))


def suffix_of(backbone: Backbone, cut: str) -> Suffix:
    """Cut a backbone, and keep what comes after the cut; see `split_suffix`."""
    recipe = backbone.recipe
    device = next(backbone.module.parameters()).device
    return split_suffix(backbone.module, cut, recipe.taps[0], backbone.pooling, probe_of(recipe, 2).to(device))


def check_activations(backbone: Backbone, file: RecipeFile, cut: str) -> None:
    """Hold what this machine computes up to a cut against the golden vectors of a table of activations.

    Raises:
        GoldenMismatchError: the table was made by something that computes other numbers.
    """
    pooling = replace(backbone.pooling, pool="none")
    with torch.inference_mode():
        images_BCHW = probe_of(backbone.recipe, GOLDEN_IMAGE_COUNT)
        activations_BD = TapRunner(backbone.module, [cut], pooling)(images_BCHW)[cut].flatten(1).numpy()
    column = file.recipe.columns[cut]
    only = file.model_copy(update={"golden": {column: file.golden[column]}})
    check_golden(only, {column: activations_BD}, where="this machine")
