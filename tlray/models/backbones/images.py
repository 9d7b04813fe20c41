"""Backbones: from what a user asks for to a full recipe and a module with weights, and back from the recipe on a worker.

Shape legend: B images, H height, W width, C channels.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

import tlray.models.process.vision_libraries  # noqa: F401  # before any other module imports timm or torchvision, in its own way
from tlray.config import RecipeConfig
from tlray.errors import BackboneError, ConfigError, WeightsError, first_line
from tlray.models.backbones.network_input import to_network_input
from tlray.models.backbones.preparation import given_by, override
from tlray.models.layers.pooling import NO_TOKENS, Layout, Pooling
from tlray.models.layers.taps import TapRunner, find_default_tap, find_layer, has_layer
from tlray.models.libraries.library import Library, Pretrained, Request
from tlray.models.libraries.names import full_name, libraries_with, split_name
from tlray.models.libraries.text_tower import OpenTextTower
from tlray.models.weights.spec import FetchFile
from tlray.recipe import Compute, Precision, Preprocessing, Recipe, golden_images

_log = logging.getLogger(__name__)

_PREPARATION = frozenset({"resize", "crop", "interpolation", "mean", "std"})
"""What weights differ in; where all of it is given, nothing is assumed."""

_ALL_SAID = frozenset(Preprocessing.model_fields)

PENULTIMATE = "penultimate"
"""The tap that is meant where none is named: the layer before the classifier. Recipes have the layer's own name."""


@dataclass(frozen=True)
class Backbone:
    """A pretrained network and all that its embeddings depend on.

    Attributes:
        recipe: complete, with the weights' hash.
        module: in eval mode, fp32, on the CPU, weights loaded.
        shapes: per table column, the shape of one embedding after pooling, before it is flattened.
        layout: where its layers keep class tokens and channels.
        classes: what the outputs of its own classifier stand for, where its library knows.
        unfilled: tensors without values, as a classifier that a file of weights leaves out; no embedding depends on them.
        misfit: the message for taps that do.
        text_tower: loads the network's text side, where it has one.
        text_tap: the layer whose vectors share a space with the text tower's.
        files: small ones, by name, to be kept beside weights that are trained from here.
        packages: installed ones that compute it, beside torch, torchvision and timm.
        fixed: why it cannot be trained; empty where it can.
        notes: what was assumed, left out or changed, for people.
    """

    recipe: Recipe
    module: nn.Module
    shapes: dict[str, tuple[int, ...]]
    layout: Layout = NO_TOKENS
    classes: Sequence[str] | None = None
    unfilled: Sequence[str] = ()
    misfit: str = ""
    text_tower: OpenTextTower | None = None
    text_tap: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    packages: Sequence[str] = ()
    fixed: str = ""
    notes: tuple[str, ...] = ()

    @property
    def pooling(self) -> Pooling:
        """How what the taps put out becomes one vector an image: the recipe's pooling, for this network."""
        return Pooling(self.recipe.pool, *self.recipe.preprocessing.crop, self.layout)


def resolve_backbone(config: RecipeConfig, fetch: FetchFile) -> Backbone:
    """Complete what the user asks for: weights, preprocessing, taps, hash. Runs on the driver.

    What was assumed, left out or changed is logged, once, and kept in the backbone's notes.

    Args:
        config: the user's `recipe`.
        fetch: brings the URI or path of a weights file to a local path.

    Raises:
        BackboneError: unknown backbone, layer or pooling.
        WeightsError: weights missing, not fitting, or of another hash than `config.weights_sha256`.
        ConfigError: preprocessing that the backbone cannot take.
    """
    library, model = split_name(config.backbone)
    if config.pool == "sif":
        raise BackboneError(f"recipe.pool is sif, which weighs words, but {config.backbone} embeds images; leave it out")
    if of_texts := config.tokens.said:
        raise ConfigError(f"recipe.tokens.{of_texts[0]} is about texts, but {config.backbone} embeds images; leave it out")
    given = given_by(config.preprocessing)
    is_prepared, said = given.keys() >= _PREPARATION, frozenset(given)
    request = Request(model, config.weights, given.get("crop"), is_prepared=is_prepared, said=said)
    pretrained = library.load(request, fetch)
    sha256 = pretrained.weights_sha256
    if config.weights_sha256 not in (None, sha256):
        raise WeightsError(f"{config.weights} has the hash {sha256}, expected weights_sha256 {config.weights_sha256}")
    draft = Recipe(
        backbone=pretrained.backbone,
        weights=pretrained.weights,
        weights_sha256=sha256,
        taps=_wanted_taps(config.taps, pretrained),
        pool=config.pool,
        normalize=config.normalize,
        precision=_precision(config.precision, pretrained.compute),
        preprocessing=override(pretrained.preprocessing, given),
    )
    notes = (*_name_notes(config.backbone), *pretrained.notes, *_precision_notes(config.precision, pretrained))
    backbone = _backbone(draft, pretrained, notes)
    try:
        probed = _probe(backbone, pretrained.classifiers)
    except _ForwardError as error:
        ours, usual = draft.preprocessing.crop, pretrained.preprocessing.crop
        raise ConfigError(
            f"{config.backbone} cannot take images of crop {ours[0]}x{ours[1]}; expected {usual[0]}x{usual[1]}, "
            f"as its weights say: {error}"
        ) from error
    probed = replace(probed, notes=(*probed.notes, *_pool_notes(probed)))
    for note in probed.notes:
        _log.warning("%s", note)
    return probed


def load_backbone(recipe: Recipe, fetch: FetchFile) -> Backbone:
    """Make the module of a recipe again, on a worker.

    Args:
        recipe: from `resolve_backbone`.
        fetch: as there.

    Raises:
        BackboneError: this machine's libraries have no such backbone or layer.
        WeightsError: the weights are missing, do not fit, or have another hash than the recipe says.
    """
    library, request = request_of(recipe)
    pretrained = library.load(request, fetch)
    if (sha256 := pretrained.weights_sha256) != recipe.weights_sha256:
        raise WeightsError(
            f"{recipe.weights} has the hash {sha256}, but the recipe says {recipe.weights_sha256}; "
            "bring back the weights of the recipe, or extract to a new table"
        )
    try:
        return _probe(_backbone(recipe, pretrained, tuple(pretrained.notes)), None)
    except _ForwardError as error:
        raise BackboneError(f"{recipe.backbone} fails on an image of {recipe.preprocessing.crop}: {error}") from error


def request_of(recipe: Recipe) -> tuple[Library, Request]:
    """The library of a recipe's network, and what is asked of it."""
    library, model = split_name(recipe.backbone)
    return library, Request(model, recipe.weights, recipe.preprocessing.crop, is_prepared=True, said=_ALL_SAID)


def with_taps(backbone: Backbone, taps: Sequence[str]) -> Backbone:
    """The same network, of which other layers are kept.

    Raises:
        BackboneError, ConfigError: as `resolve_backbone`.
        WeightsError: a layer depends on tensors that the weights do not have.
    """
    return _probe(replace(backbone, recipe=backbone.recipe.model_copy(update={"taps": tuple(taps)})), None)


def _backbone(recipe: Recipe, pretrained: Pretrained, notes: tuple[str, ...]) -> Backbone:
    return Backbone(
        recipe,
        pretrained.module,
        {},
        layout=pretrained.layout,
        classes=pretrained.classes,
        unfilled=pretrained.unfilled,
        misfit=pretrained.misfit,
        text_tower=pretrained.text_tower,
        text_tap=pretrained.text_tap,
        files=pretrained.files,
        packages=pretrained.packages,
        fixed=pretrained.fixed,
        notes=notes,
    )


def _wanted_taps(taps: tuple[str, ...], pretrained: Pretrained) -> tuple[str, ...]:
    """The layers that are asked for; `penultimate` by the library's own name of it, where it says one."""
    wanted = taps or (PENULTIMATE,)
    if pretrained.default_tap is None or (taps and has_layer(pretrained.module, PENULTIMATE)):
        return wanted
    return tuple(pretrained.default_tap if tap == PENULTIMATE else tap for tap in wanted)


def _precision(wished: Precision, compute: Compute | None) -> Precision:
    return wished if compute is None else wished.model_copy(update={"compute": compute})


def _precision_notes(wished: Precision, pretrained: Pretrained) -> list[str]:
    """What becomes of the number format that is asked for, where a runtime computes as a file says."""
    if pretrained.compute in (None, wished.compute):
        return []
    return [
        f"{pretrained.backbone} computes in the number formats of its own file, so precision.compute is "
        f"{pretrained.compute} in the recipe, not {wished.compute}"
    ]


def _pool_notes(backbone: Backbone) -> list[str]:
    """Whether the pooling that is asked for has nothing to pool, as the layers give vectors already."""
    recipe = backbone.recipe
    if recipe.pool not in ("max", "gem", "cls"):
        return []
    images_BCHW = probe_of(recipe.preprocessing)
    with torch.inference_mode():
        pooled, whole = (
            TapRunner(backbone.module, recipe.taps, pooling)(images_BCHW)
            for pooling in (backbone.pooling, replace(backbone.pooling, pool="none"))
        )
    if not all(torch.equal(pooled[tap].flatten(1), whole[tap].flatten(1)) for tap in recipe.taps):
        return []
    gives = "gives a vector" if len(recipe.taps) == 1 else "give vectors"
    return [f"recipe.pool {recipe.pool} changes nothing: {', '.join(recipe.taps)} {gives}; to pool a map, tap a layer before"]


def _name_notes(backbone: str) -> list[str]:
    """Which library a name means that came without one."""
    if ":" in backbone:
        return []
    others = [f"{library}:{backbone}" for library in libraries_with(backbone)][1:]
    return [f"backbone {backbone} is {full_name(backbone)}" + (f"; there is {', '.join(others)}, too" if others else "")]


class _ForwardError(Exception):
    """The module failed on the probe image."""


def _probe(backbone: Backbone, classifiers: Sequence[nn.Module] | None) -> Backbone:
    """Complete a recipe's taps and the shapes by running one golden image.

    Args:
        backbone: its taps may be unknown.
        classifiers: the modules of its classifier, to find the default tap.
    """
    recipe, module = backbone.recipe, backbone.module
    is_known = PENULTIMATE not in recipe.taps or has_layer(module, PENULTIMATE)
    images_BCHW = probe_of(recipe.preprocessing)
    for tap in recipe.taps:
        if is_known or tap != PENULTIMATE:
            find_layer(module, tap)
    try:
        with torch.inference_mode():
            found = PENULTIMATE if is_known else find_default_tap(module, classifiers, images_BCHW)
            taps = tuple(found if tap == PENULTIMATE else tap for tap in recipe.taps)
            features = TapRunner(module, taps, backbone.pooling)(images_BCHW)
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        raise _ForwardError(first_line(error)) from error
    if backbone.unfilled and not all(bool(feature.isfinite().all()) for feature in features.values()):
        raise WeightsError(backbone.misfit)
    recipe = recipe.model_copy(update={"taps": taps})
    if len(set(recipe.columns.values())) != len(taps) or len(set(taps)) != len(taps):
        raise ConfigError(f"taps {', '.join(taps)} would share a column of the table ({', '.join(recipe.columns.values())})")
    shapes = {recipe.columns[tap]: tuple(features[tap].shape[1:]) for tap in taps}
    return replace(backbone, recipe=recipe, shapes=shapes)


def probe_of(preprocessing: Preprocessing) -> Tensor:
    """One golden image as the network takes it, images_BCHW: to see what the network makes of an image."""
    return to_network_input(torch.from_numpy(golden_images(*preprocessing.crop)[:1]), preprocessing)
